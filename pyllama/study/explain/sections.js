function drawSections() {
  drawLosses();
  drawTexts();
  drawTime();
  drawNudge();
  drawFlow();
  drawAttention();
  drawUpdate();
}

function bar(x, largest) {
  const made = element("span", { class: "bar", "aria-hidden": "true" });
  made.style.width = `${(8 * x / (largest || 1)).toFixed(2)}rem`;
  return made;
}

function drawNudge() {
  const one = data.nudges[state.weight];
  const choice = element("select", { "aria-label": word("weight"), onchange: (event) => {
    state.weight = event.target.selectedIndex;
    drawNudge();
    $("nudge").querySelector("select").focus();
  } }, data.nudges.map((nudge, i) => element("option", { selected: i === state.weight }, nudge.weight)));
  const slider = element("input", { type: "range", min: 0, max: 4, step: 1, value: state.epsilon,
    "aria-label": word("epsilon"), oninput: (event) => {
      state.epsilon = Number(event.target.value);
      showEpsilon();
    } });
  const result = element("div");
  const showEpsilon = () => {
    slider.setAttribute("aria-valuetext", signed(one.epsilons[state.epsilon]));
    result.replaceChildren(plot(one), element("p", {}, word("plot")), nudgeTable(one));
  };
  showEpsilon();
  $("nudge").replaceChildren(choice, element("p", {}, element("code", {}, `∂loss/∂w = ${signed(one.gradient, 6)}`)),
    slider, result);
}

function nudgeTable(one) {
  const loss = one.losses[2];
  const rows = one.epsilons.map((epsilon, i) => {
    const predicted = loss + epsilon * one.gradient;
    return [signed(epsilon, 4), one.losses[i].toFixed(9), predicted.toFixed(9), signed(one.losses[i] - predicted, 3)];
  });
  const numbers = table(["epsilon", "computed", "predicted", "difference"].map((name) => word(name)), rows);
  numbers.querySelectorAll("tbody tr")[state.epsilon].className = "chosen";
  return scrolled(numbers);
}

// The computed losses and the line that the gradient predicts.
function plot({ epsilons, losses, gradient }) {
  const width = 480, height = 180, edge = 16, loss = losses[2];
  const predicted = epsilons.map((epsilon) => loss + epsilon * gradient);
  const low = Math.min(...losses, ...predicted), high = Math.max(...losses, ...predicted), span = high - low || 1;
  const x = (epsilon) => width / 2 + (width / 2 - edge) * epsilon / epsilons[4];
  const y = (value) => height - edge - (height - 2 * edge) * (value - low) / span;
  const marks = epsilons.map((epsilon, i) => svg("circle", { cx: x(epsilon), cy: y(losses[i]),
    r: i === state.epsilon ? 8 : 4 }));
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "plot", "aria-hidden": "true" },
    svg("line", { class: "axis", x1: width / 2, x2: width / 2, y1: 0, y2: height }),
    svg("line", { class: "line", x1: x(epsilons[0]), x2: x(epsilons[4]), y1: y(predicted[0]), y2: y(predicted[4]) }),
    ...marks);
}

// The layer that a parameter belongs to: its name up to the number.
const layerOf = (name) => name.match(/^.*?\.\d+(?=\.)/)?.[0] ?? name.replace(/\.(weight|bias)$/, "");

function drawFlow() {
  const layers = new Map(), root = (squares) => Math.sqrt(squares);
  for (const row of data.flow) {
    const sums = layers.get(layerOf(row.name)) ?? { norm: 0, gradient: 0, update: 0 };
    for (const key of Object.keys(sums)) sums[key] += row[key] ** 2;
    layers.set(layerOf(row.name), sums);
  }
  const numbers = ({ norm, gradient, update }) => [unsigned(norm), unsigned(gradient), unsigned(update),
    norm ? unsigned(update / norm, 3) : ""];
  const perLayer = [...layers].map(([name, sums]) => [name, root(sums.norm), root(sums.gradient), root(sums.update)]);
  const largest = sizeOf(perLayer.map((row) => row[2]));
  const rows = perLayer.map(([name, norm, gradient, update]) => [name, ...numbers({ norm, gradient, update }),
    bar(gradient, largest)]);
  const headings = ["norm", "gradientNorm", "change", "relative"].map((name) => word(name));
  const each = data.flow.map((row) => [row.name, row.shape.join(" "), ...numbers(row), unsigned(row.largest)]);
  const units = data.units.map(({ call, units: all, dead }) => [nameBefore(call), count(all), count(dead)]);
  $("flow").replaceChildren(element("h3", {}, word("byLayer")),
    scrolled(table([word("layer"), ...headings, word("gradientNorm")], rows, [0, 5])),
    element("details", {}, element("summary", {}, word("byParameter")),
      scrolled(table([word("parameter"), word("shape"), ...headings, word("most")], each, [0, 1]))),
    element("h3", {}, word("units")),
    units.length ? scrolled(table([word("call"), word("unitCount"), word("dead")], units, [0])) : word("noUnits"));
}

// An activation with the call that it reads from, which says where in the model it stands.
function nameBefore(call) {
  const before = readsOf(call)[0];
  return `${call + 1} ${calls[call].op}` + (before === undefined ? "" : ` ← ${before + 1} ${nameOf(before)}`);
}

const RULES = {
  AdamW: () => ["m ← β₁ m + (1 - β₁) g", "v ← β₂ v + (1 - β₂) g²",
    "w ← w - η (m/(1 - β₁ᵗ) / (√(v/(1 - β₂ᵗ)) + ε) + λ w)"],
  SGD: ({ momentum, nesterov }) => !momentum ? ["w ← w - η (g + λ w)"]
    : ["v ← μ v + g", nesterov ? "w ← w - η (g + μ v + λ w)" : "w ← w - η (v + λ w)"],
};

function drawUpdate() {
  const { rule, step, lr, norm, scale, options, vectors, rows } = data.update;
  const constants = Object.entries(options).filter(([name]) => name !== "t").map(([name, x]) => `${name} = ${x}`);
  const cells = rows.map((row) => [row.weight, signed(row.before, 7), signed(row.gradient, 5),
    signed(row.gradient * scale, 5), ...vectors.map((name) => signed(row[name], 5)), String(row.decay),
    signed(row.after - row.before, 4), signed(row.after, 7)]);
  $("update").replaceChildren(element("p", {}, word(data.model.resumed ? "resumed" : "fresh")),
    element("p", {}, word("clipped", unsigned(norm), unsigned(scale, 5))),
    ...RULES[rule](options).map((line) => element("p", {}, element("code", {}, line))),
    element("p", {}, element("code", {}, [`${word("stepNumber")} = ${step}`, `${word("rate")} = ${lr}`, ...constants]
      .join(", "))),
    scrolled(table([word("weight"), word("before"), "dw", "g", ...vectors, word("decay"), word("delta"),
      word("afterUpdate")], cells, [0])));
}
