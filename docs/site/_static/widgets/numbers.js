"use strict";
// An op on one row of three numbers: every slider moves y and the gradients at once.

WIDGETS.numbers = (place, { op, inputs }) => {
  const values = Object.fromEntries(Object.entries(inputs).map(([name, row]) => [name, [...row]]));
  const shown = {};
  const empty = () => element("td");

  function draw(name, row) {
    const most = Math.max(...row.map(Math.abs));
    row.forEach((value, j) => {
      shown[name][j].number.textContent = signed(value);
      shown[name][j].bar.className = `bar ${value < 0 ? "minus" : "plus"}`;
      shown[name][j].bar.style.setProperty("--size", most ? Math.abs(value) / most : 0);
    });
  }

  function update() {
    for (const [name, row] of Object.entries(values)) draw(name, row);
    for (const [name, row] of Object.entries(formulas[op](values))) draw(name, [row].flat());
  }

  const control = (name, j) => slider(`${name}[${j}]`, { min: -3, max: 3, step: 0.1 }, values[name][j], (value) => {
    values[name][j] = value;
    update();
  });

  function line(name, length) {
    shown[name] = Array.from({ length }, () => ({ number: element("span"), bar: element("span") }));
    const controls = shown[name].map((one, j) => name in inputs ? [control(name, j)] : []);
    const cells = shown[name].map((one, j) => element("td", {}, ...controls[j], one.number, one.bar));
    const rest = Array.from({ length: 3 - length }, empty);
    return element("tr", { class: name in inputs ? "input" : "output" },
      element("th", { scope: "row" }, element("code", {}, name)), ...cells, ...rest);
  }

  const rows = [...Object.entries(values), ...Object.entries(formulas[op](values))];
  const caption = said("One row of three numbers", "三个数组成的一行");
  const help = said("Move the sliders, with the mouse or the arrow keys. The page computes the rows below them "
    + "with the formulas of the derivation. A bar shows the size within its row.",
    "用鼠标或方向键移动滑块。下面各行由网页按推导中的公式计算；横条表示在该行内的相对大小。");
  const heads = [empty(), ...[0, 1, 2].map((j) => element("th", { scope: "col" }, `[${j}]`))];
  place.append(element("figure", {}, element("figcaption", {}, element("strong", {}, caption), " ", help),
    element("table", { class: "numbers" }, element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...rows.map(([name, row]) => line(name, [row].flat().length))))));
  update();
};
