// The index of a place in an array of this shape, such as [0, 3, 5].
function unravel(place, shape) {
  const index = [];
  for (const length of [...shape].reverse()) {
    index.unshift(place % length);
    place = Math.floor(place / length);
  }
  return index;
}

const lead = (array) => array.shape.slice(0, -1);

function indexOf(array, cell) {
  const columns = array.columns.length;
  const row = array.rows[Math.floor(cell / columns)], column = array.columns[cell % columns];
  return array.shape.length ? [...unravel(row, lead(array)), column] : [];
}

const at = (index) => index.length ? `[${index.join(",")}]` : "";

// "dy[{0},{j0}]" for a cell and the index that is summed over.
const filled = (text, cell, j) => text.replace(/\{(j?)(\d+)\}/g, (_, isSum, i) => (isSum ? j : cell)[i]);

function drawInspector() {
  const call = state.call, one = calls[call], arrays = arraysOf(call);
  state.array = Math.min(state.array, arrays.length - 1);
  const array = arrays[state.array];
  const options = Object.entries(one.options).map(([name, value]) => `${name}=${value}`).join(", ");
  const heading = element("h3", {}, `${call + 1} ${nameOf(call)}`);
  const line = element("p", {}, element("code", {}, one.line + (options ? `   ${options}` : "")));
  $("inspector").replaceChildren(heading, line, chooseArray(arrays), chooseNumbers(array), origin(call, array),
    cells(call, array), element("div", { id: "detail", "aria-live": "polite" }));
  drawDetail();
}

function chooseArray(arrays) {
  const buttons = arrays.map((array, i) => element("button", { type: "button", "aria-pressed": i === state.array,
    onclick: () => goTo(state.call, i) }, `${word(array.isOutput ? "output" : "input")} ${array.name}`));
  return element("div", { class: "controls", role: "group", "aria-label": word("array") }, buttons);
}

function chooseNumbers(array) {
  const choices = array.gradients ? ["values", "gradients"] : ["values"];
  if (!array.gradients) state.shows = "values";
  const buttons = choices.map((what) => element("button", { type: "button", "aria-pressed": what === state.shows,
    "data-shows": what, onclick: () => {
      state.shows = what;
      drawInspector();
    } }, word(what)));
  return element("div", { class: "controls", role: "group", "aria-label": word("show") }, buttons);
}

function origin(call, array) {
  const said = element("p", {}, element("code", {}, `${array.name} [${array.shape.join(" ")}] `), extent(array));
  if (array.parameter) said.append(` · ${array.parameter}${array.transposed ? word("transposed") : ""}`);
  if (!array.isOutput && array.reads.length) {
    said.append(` · ${word(array.reads.length === 1 ? "comesFrom" : array.isSum ? "isSum" : "madeFrom")} `);
    array.reads.forEach(([other, index], i) => said.append(i ? array.isSum ? " + " : ", " : "",
      link(`${other + 1} ${calls[other].op}`, () => goTo(other, calls[other].inputs.length + index))));
  }
  const uses = usesOf(array);
  if (uses.length > 1) said.append(` · ${word("parameterAdds")} ${uses.map((use) => use.call + 1).join(", ")}`);
  return said;
}

// The calls whose gradients add up to that of a parameter, each with the number of its input there.
function usesOf({ parameter }) {
  if (!parameter) return [];
  const found = data.flow.find((row) => row.name === parameter).calls;
  return [...found].sort((a, b) => a - b).map((call) => ({ call,
    index: calls[call].inputs.findIndex((one) => one.parameter === parameter) }));
}

function extent(array) {
  if (array.whole) return word("whole", count(array.values.length));
  const rows = lead(array).reduce((product, n) => product * n, 1);
  return word(array.gradients === null ? "beginning" : "part", array.rows.length, count(rows),
    array.columns.length, count(array.shape.at(-1)));
}

function cells(call, array) {
  const known = (state.shows === "values" ? valuesKnown : gradientsKnown)(call, array);
  const numbers = array[state.shows], largest = sizeOf(numbers), columns = array.columns.length;
  const isInteger = !array.gradients && !array.isOutput;
  const body = array.rows.map((row, i) => element("tr", {}, element("th", { scope: "row" },
    unravel(row, lead(array)).join(",")), array.columns.map((_, j) => {
    const n = i * columns + j, x = numbers[n];
    const cell = element("td", { "data-cell": n, tabIndex: n === (state.cell ?? 0) ? 0 : -1,
      "aria-selected": n === state.cell }, !known ? "–" : isInteger ? String(x) : signed(x));
    if (known) cell.style.background = color(x, largest);
    else cell.className = "unknown";
    return cell;
  })));
  const head = element("tr", {}, ["", ...array.columns].map((name) => heading(String(name))));
  const made = element("table", { class: "cells", role: "grid", "aria-label": `${array.name} ${word(state.shows)}` },
    element("thead", {}, head), element("tbody", {}, body));
  made.onclick = (event) => choose(event.target.closest("td"));
  made.onkeydown = (event) => move(event, columns);
  return element("div", { class: "scroll" }, made);
}

function choose(cell) {
  if (!cell) return;
  state.cell = Number(cell.dataset.cell);
  for (const other of $("inspector").querySelectorAll("td[data-cell]")) {
    const isChosen = other === cell;
    other.setAttribute("aria-selected", isChosen);
    other.tabIndex = isChosen ? 0 : -1;
  }
  drawDetail();
}

function move(event, columns) {
  const cell = event.target.closest("td");
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  if (!cell) return;
  if (event.key === "Enter" || event.key === " ") choose(cell);
  else if (event.key in step) {
    const next = $("inspector").querySelector(`td[data-cell="${Number(cell.dataset.cell) + step[event.key]}"]`);
    next?.focus();
  } else return;
  event.preventDefault();
}

function drawDetail() {
  const call = state.call, array = arraysOf(call)[state.array], n = state.cell;
  if (n === null || n >= array.values.length) return $("detail").replaceChildren(word("pick"));
  const index = indexOf(array, n), place = at(index), code = (text) => element("code", {}, text);
  const value = valuesKnown(call, array) ? signed(array.values[n], 6) : "–";
  const parts = [element("p", {}, code(`${array.name}${place} = ${value}`))];
  if (!array.gradients) parts.push(element("p", {}, word("noGradient")));
  else {
    const known = gradientsKnown(call, array);
    const gradient = known ? signed(array.gradients[n], 6) : "–";
    parts.push(element("p", {}, code(`d${array.name}${place} = ${gradient}`), known ? "" : ` ${word("notYet")}`));
    if (known) parts.push(...(array.isOutput ? added(array, n) : multiplied(array, n, index)));
  }
  $("detail").replaceChildren(...parts);
}

// The local products of an input's gradient.
function multiplied(array, n, index) {
  const { groups, count: all, method, cells: products } = array.products, flat = products[n], lines = [];
  let sum = 0;
  for (let i = 0; i < flat.length; i += 3) {
    const [j, left, right] = flat.slice(i, i + 3), product = left * right;
    sum += product;
    lines.push(element("li", {}, element("code", {}, `${factors(groups, j, index)} = ${signed(left, 5)} · `
      + `${signed(right, 5)} = ${signed(product, 5)}`)));
  }
  const shown = flat.length / 3, isAll = shown === all;
  const said = [element("p", {}, word("sumOf", count(all), isAll)), element("ol", {}, lines)];
  if (!isAll) said.push(element("p", {}, word("rest", count(all - shown)),
    element("code", {}, signed(array.gradients[n] - sum, 5))));
  return [...said, element("p", {}, word(method)), ...share(array), ...shares(array, n)];
}

// Of a parameter that several calls use, such as an LSTM's at each step, the part of each call and their sum.
function shares(array, n) {
  const uses = usesOf(array), same = (one) => ["rows", "columns"].every((key) => `${one[key]}` === `${array[key]}`);
  if (uses.length < 2 || !uses.every(({ call, index }) => same(calls[call].inputs[index]))) return [];
  const parts = uses.map(({ call, index }) => calls[call].inputs[index].gradients[n]);
  const lines = uses.map(({ call, index }, i) => {
    const { products } = calls[call].inputs[index], [, left, right] = products.cells[n];
    const product = products.count === 1 && left !== undefined ? ` = ${signed(left, 5)} · ${signed(right, 5)}` : "";
    return element("li", {}, link(`${call + 1} ${calls[call].op}`, () => goTo(call, index)), " ",
      element("code", {}, ranBack(call) ? signed(parts[i], 6) + product : "–"));
  });
  const isAll = uses.every(({ call }) => ranBack(call));
  const total = isAll ? signed(parts.reduce((sum, x) => sum + x, 0), 6) : `– ${word("notYet")}`;
  return [element("p", {}, word("usedBy")), element("ol", {}, lines),
    element("p", {}, element("code", {}, `∂loss/∂${array.parameter}${at(indexOf(array, n))} = ${total}`))];
}

// An array that several calls read has a gradient from each; they are added at the output that it is.
function share(array) {
  const added = array.reads.filter(([call, place]) => calls[call].outputs[place].adds?.length > 1);
  const links = added.flatMap(([call, place], i) => [i ? ", " : "",
    link(`${call + 1} ${calls[call].op}`, () => goTo(call, calls[call].inputs.length + place))]);
  return added.length ? [element("p", {}, word("share"), ...links)] : [];
}

function factors(groups, j, index) {
  for (const { left, right, shape } of groups) {
    const size = shape.reduce((product, n) => product * n, 1);
    if (j < size) return [left, right].map((text) => filled(text, index, unravel(j, shape))).join(" · ");
    j -= size;
  }
  return "";
}

// The gradients that other calls passed back to an output.
function added(array, n) {
  const start = array.shape.length ? "outside" : "seed";
  if (!array.adds.length) return [element("p", {}, word(state.call === data.order[0] ? start : "unread"))];
  const lines = array.adds.map(({ call, index, values }) => {
    const input = calls[call].inputs.findIndex((one) => one.place === index);
    return element("li", {}, link(`${call + 1} ${calls[call].op}, d${calls[call].inputs[input].name}`,
      () => goTo(call, input)), " ", element("code", {}, values ? signed(values[n], 6) : word("turned")));
  });
  return [element("p", {}, word(lines.length > 1 ? "adds" : "one")), element("ol", {}, lines)];
}
