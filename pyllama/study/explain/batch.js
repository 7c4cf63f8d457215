// What the step reads and what it is measured on: losses, classes, texts, an LSTM's steps, attention.
const visible = (token) => token === null ? "" : JSON.stringify(token);

// A table of numbers with colors; `most` is the size that has the strongest one.
function colored(headings, names, numbers, most) {
  const width = headings.length - 1;
  const made = table(headings, names.map((text, i) => [text, ...numbers.slice(i * width, (i + 1) * width)
    .map((x) => signed(x, 3))]), [0]);
  made.querySelectorAll("tbody tr").forEach((line, i) => [...line.cells].slice(1).forEach((cell, j) => {
    cell.style.background = color(numbers[i * width + j], most);
  }));
  return made;
}

// What the targets are: words have it in their names.
function kindOfTargets() {
  if (data.tokenLosses.some((row) => row.probability === null)) return "number";
  if (data.model.head === "tagging") return "tag";
  return { classification: "label", span: "span" }[data.model.head] ?? "token";
}

function drawLosses() {
  const rows = data.tokenLosses, largest = sizeOf(rows.map((row) => row.loss)), kind = kindOfTargets();
  const belongs = kind === "span" ? (end) => word(`${end}_token`) : visible;
  const names = [...(rows.some((row) => row.of !== null) ? [{ span: "end", tag: "token" }[kind] ?? "after"] : []),
    "target", kind === "number" ? "squared" : "nll", "", ...(kind === "number" ? [] : ["probability"]),
    kind === "number" ? "score" : "best"];
  const show = kind === "token" ? visible : (text) => text;
  const cells = rows.map((row) => [...(row.of === null ? [] : [belongs(row.of)]), show(row.target), unsigned(row.loss),
    bar(row.loss, largest), ...(kind === "number" ? [] : [unsigned(row.probability)]), show(row.best)]);
  const texts = names.flatMap((key, i) => ["nll", "squared", "probability"].includes(key) ? [] : [i]);
  $("h-losses").textContent = word(`${kind}Losses`);
  $("losses").replaceChildren(scrolled(table(names.map((key) => key && word(key)), cells, texts)), ...scores());
}

// The scores of the classes: of one target a row for each class, of several a table of probabilities and gradients.
function scores() {
  if (!data.classes) return [];
  const { rows, columns, targets, count: all, z, p, dz } = data.classes, width = columns.length, kind = kindOfTargets();
  const some = width < all ? ` ${word("someClasses", width, count(all))}` : "";
  const help = element("p", {}, word("scoresHelp") + some);
  if (rows.length === 1) {
    const lines = columns.map((text, j) => [text, signed(z[j]), unsigned(p[j]), bar(p[j], 1), signed(dz[j])]);
    const made = table([word("class"), "z", "p", "", "dz"], lines, [0, 3]);
    made.querySelectorAll("tbody tr")[columns.indexOf(targets[0])]?.classList.add("chosen");
    return [help, scrolled(made)];
  }
  const labels = rows.map((of, i) => `${kind === "span" ? word(`${of}_token`) : visible(of)} → ${targets[i]}`);
  return [help, ...[["p", p], ["dz", dz]].flatMap(([text, numbers]) => [element("h3", {}, text),
    scrolled(colored(["", ...columns], labels, numbers, sizeOf(numbers)))])];
}

// The gradient at each token of each text.
function drawTexts() {
  const parts = data.texts.map((text, i) => {
    const ends = [["gradients", text.call], ["lastGradients", text.last]].filter(([key]) => text[key]);
    const columns = ends.map(([key]) => [text[key], sizeOf(text[key])]);
    const lines = text.tokens.map((token, t) => [String(t), visible(token),
      ...columns.flatMap(([norms, most]) => [unsigned(norms[t], 3), bar(norms[t], most)])]);
    const headings = ends.flatMap(([, call]) => [`‖dy‖ ${call + 1} ${calls[call].op}`, ""]);
    return [...(data.texts.length > 1 ? [element("h3", {}, word(i ? "decoderText" : "encoderText"))] : []),
      scrolled(table(["", word("token"), ...headings], lines, [1, 3, 5]))];
  });
  $("texts").replaceChildren(...parts.flat());
}

function drawTime() {
  $("time-section").hidden = !data.time.length;
  const parts = data.time.map(({ name: matrix, steps }) => {
    const most = sizeOf(steps.map((step) => step.weight));
    const tokens = data.texts[0].tokens;
    const lines = steps.map((step, t) => [String(t), visible(tokens[t]),
      link(`${step.call + 1} lstm_cell`, () => visit(step.call)), unsigned(step.state, 3),
      unsigned(step.stateGradient, 3), unsigned(step.cell, 3), unsigned(step.cellGradient, 3),
      link(`${step.recurrent + 1} linear`, () => visit(step.recurrent, 1)), unsigned(step.weight, 3),
      bar(step.weight, most)]);
    return [element("h3", {}, matrix), scrolled(table(["", word("token"), word("call"), "‖h‖", "‖dh‖", "‖c‖", "‖dc‖",
      word("call"), "‖dW‖", ""], lines, [1, 2, 7, 9]))];
  });
  $("time").replaceChildren(...parts.flat());
}

// Go to a call from another part of the page.
function visit(call, array) {
  goTo(call, array);
  $("inspector").scrollIntoView({ block: "nearest" });
}

const kindOfMap = ({ queries, keys }) => data.texts.length < 2 ? ""
  : `${word(queries !== keys ? "cross" : queries ? "decoder" : "encoder")} · `;

function drawAttention() {
  if (!data.attention.length) return $("attention").replaceChildren(word("noAttention"));
  const one = data.attention[state.map];
  const choice = element("select", { "aria-label": word("attention"), onchange: (event) => {
    state.map = event.target.selectedIndex;
    drawAttention();
    $("attention").querySelector("select").focus();
  } }, data.attention.map((map, i) => element("option", { selected: i === state.map },
    `${kindOfMap(map)}${map.call + 1} ${map.name}, ${word("head")} ${map.head}`)));
  const maps = ["p", "dp"].map((text) => element("div", {}, element("h3", {}, text),
    scrolled(attentionMap(one, text))));
  $("attention").replaceChildren(choice, element("p", {}, extent({ ...one, values: one.p,
    whole: one.p.length === one.shape[0] * one.shape[1] })), element("div", { class: "maps" }, maps));
}

function attentionMap({ rows, columns, queries, keys, ...numbers }, text) {
  const xs = numbers[text], largest = sizeOf(xs);
  const label = (of) => (i) => `${i} ${visible(data.texts[of].tokens[i])}`;
  const made = table(["", ...columns.map(label(keys))], rows.map((row, i) => [label(queries)(row),
    ...columns.map((_, j) => numbers.p[i * columns.length + j] ? signed(xs[i * columns.length + j], 2) : "·")]), [0]);
  made.querySelectorAll("tbody tr").forEach((line, i) => [...line.cells].slice(1).forEach((cell, j) => {
    if (cell.textContent !== "·") cell.style.background = color(xs[i * columns.length + j], largest);
  }));
  return made;
}
