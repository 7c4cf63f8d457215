const NODE = { width: 164, height: 68, across: 14, down: 26 };

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const readsOf = (call) => [...new Set(calls[call].inputs.flatMap((array) => array.reads.map(([other]) => other)))];

// Each call stands one row below the lowest that it reads from.
const places = (() => {
  const levels = [], rows = [];
  calls.forEach((_, call) => {
    const level = Math.max(-1, ...readsOf(call).map((other) => levels[other])) + 1;
    levels.push(level);
    (rows[level] ??= []).push(call);
  });
  const widest = Math.max(1, ...rows.map((row) => row.length)), width = NODE.width + NODE.across, found = [];
  rows.forEach((row, level) => row.forEach((call, i) => {
    found[call] = { x: (widest - row.length) * width / 2 + i * width + NODE.across,
      y: level * (NODE.height + NODE.down) + 12 };
  }));
  const rights = rows.map((row) => Math.max(...row.map((call) => found[call].x)) + NODE.width);
  return Object.assign(found, { levels, rights, width: widest * width + NODE.across + 60,
    height: rows.length * (NODE.height + NODE.down) + 12 });
})();

// The edges [from, to].  A sum that an earlier call read, too, such as the residual stream, is one edge from that call.
const edges = (() => {
  const sums = [], found = [];
  calls.forEach((one, call) => {
    const from = new Set();
    for (const { reads } of one.inputs) {
      let parts = reads.map(String);
      const known = sums.filter((sum) => sum.call < call && sum.parts.every((part) => parts.includes(part)));
      const largest = known.reduce((best, sum) => sum.parts.length >= (best?.parts.length ?? 0) ? sum : best, null);
      if (parts.length > 1) sums.push({ call, parts });
      if (largest) {
        from.add(largest.call);
        parts = parts.filter((part) => !largest.parts.includes(part));
      }
      for (const part of parts) from.add(Number(part.split(",")[0]));
    }
    for (const other of from) found.push([other, call]);
  });
  return found;
})();

// A curve from one node to another, beside the nodes of the rows between them.
function curve(from, to) {
  const [a, b] = [places[from], places[to]], [upper, lower] = [places.levels[from], places.levels[to]];
  if (lower === upper + 1) {
    const [x1, y1, x2, y2] = [a.x + NODE.width / 2, a.y + NODE.height, b.x + NODE.width / 2, b.y];
    return `M${x1},${y1} C${x1},${y1 + NODE.down} ${x2},${y2 - NODE.down} ${x2},${y2}`;
  }
  const [x1, y1, x2, y2] = [a.x + NODE.width, a.y + NODE.height / 2, b.x + NODE.width, b.y + NODE.height / 2];
  const beside = Math.max(x1, x2, ...places.rights.slice(upper + 1, lower)) + 14;
  const [bend1, bend2] = [x1, x2].map((x) => x + (beside - x) * 4 / 3);       // a curve goes 3/4 of the way to these
  return `M${x1},${y1} C${bend1},${y1} ${bend2},${y2} ${x2},${y2}`;
}

// Short, because a node is narrow; the inspector has the whole name.
function shortName(call) {
  const parts = (calls[call].parameter ?? "").split(".").filter((part) => part !== "weight" && part !== "bias");
  const name = parts.at(-1) ?? "";
  return name.length > 20 ? `${name.slice(0, 19)}…` : name;
}

function drawGraph() {
  const running = state.step ? state.call : -1, isBack = state.step > calls.length;
  const lines = edges.map(([from, to]) => svg("path", { d: curve(from, to),
    class: (isBack ? from : to) === running ? "edge now" : "edge" }));
  const nodes = calls.map((_, call) => node(call, places[call], call === running));
  const picture = svg("svg", { width: places.width, height: places.height, role: "group",
    "aria-label": word("graph") }, ...lines, ...nodes);
  const hadFocus = document.activeElement?.closest?.(".node");
  $("graph").replaceChildren(picture);
  const { x, y } = places[state.call], box = $("graph");
  box.scrollTop = y - box.clientHeight / 2 + NODE.height;
  box.scrollLeft = x - box.clientWidth / 2 + NODE.width / 2;
  if (hadFocus) picture.querySelector(`[data-call="${state.call}"]`).focus({ preventScroll: true });
}

function node(call, { x, y }, isNow) {
  const { op, norms, gradientNorms } = calls[call];
  const norm = (numbers, known) => known ? numbers.map((n) => unsigned(n, 3)).join(", ") : "–";
  const known = gradientsKnown(call, arraysOf(call).at(-1));
  const kinds = ["node", ran(call) && "forward", ranBack(call) && "backward", isNow && "now",
    call === state.call && "selected"].filter(Boolean);
  const lines = [[`${call + 1} ${op}`, "name"], [shortName(call), ""],
    [`‖y‖ ${norm(norms, ran(call))}`, "size"], [`‖dy‖ ${norm(gradientNorms, known)}`, "gradient-size"]];
  const texts = lines.map(([text, kind], i) => {
    const line = svg("text", { x: x + 8, y: y + 16 + 15 * i, class: kind });
    line.textContent = text;
    return line;
  });
  const made = svg("g", { class: kinds.join(" "), tabindex: 0, role: "button", "data-call": call,
    "aria-label": lines.map(([text]) => text).join(", "), "aria-pressed": call === state.call },
    svg("rect", { x, y, width: NODE.width, height: NODE.height, rx: 6 }), ...texts);
  made.onclick = () => goTo(call);
  made.onkeydown = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    goTo(call);
  };
  return made;
}

function drawCalls() {
  const rows = calls.map((one, call) => [String(call + 1), one.op, one.parameter ?? "",
    readsOf(call).map((other) => other + 1).join(", "),
    ran(call) ? one.norms.map((n) => unsigned(n)).join(", ") : "–",
    gradientsKnown(call, arraysOf(call).at(-1)) ? one.gradientNorms.map((n) => unsigned(n)).join(", ") : "–"]);
  $("calls").replaceChildren(table([word("call"), word("op"), word("parameter"), word("reads"), word("size"),
    word("gradientSize")], rows, [1, 2, 3]));
}
