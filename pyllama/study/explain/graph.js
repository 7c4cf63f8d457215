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
  return Object.assign(found, { width: widest * width + NODE.across,
    height: rows.length * (NODE.height + NODE.down) + 12 });
})();

// Short, because a node is narrow; the inspector has the whole name.
function shortName(call) {
  const parts = (calls[call].parameter ?? "").split(".").filter((part) => part !== "weight" && part !== "bias");
  return parts.length ? parts[parts.length - 1].slice(0, 22) : "";
}

function drawGraph() {
  const edges = [], nodes = [];
  const running = state.step ? state.call : -1, isBack = state.step > calls.length;
  calls.forEach((_, call) => {
    const to = places[call];
    for (const other of readsOf(call)) {
      const from = places[other];
      const isNow = isBack ? other === running : call === running;
      const [x1, y1] = [from.x + NODE.width / 2, from.y + NODE.height], [x2, y2] = [to.x + NODE.width / 2, to.y];
      const bend = Math.min(40, (y2 - y1) / 2);
      edges.push(svg("path", { class: isNow ? "edge now" : "edge",
        d: `M${x1},${y1} C${x1},${y1 + bend} ${x2},${y2 - bend} ${x2},${y2}` }));
    }
    nodes.push(node(call, to, call === running));
  });
  const picture = svg("svg", { width: places.width, height: places.height, role: "group",
    "aria-label": word("graph") }, ...edges, ...nodes);
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
