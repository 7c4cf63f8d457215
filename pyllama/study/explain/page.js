const data = JSON.parse(document.getElementById("document").textContent);
const calls = data.calls, total = calls.length + data.order.length;
const backAt = new Map(data.order.map((call, i) => [call, calls.length + i]));
const state = { step: 0, call: 0, array: 0, cell: null, shows: "values", weight: 0, epsilon: 3, map: 0, timer: null };
const $ = (id) => document.getElementById(id);

// An element with properties, attributes (names with a hyphen, role, class) and children.
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made && !key.includes("-")) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.flat());
  return made;
}

const count = (n) => n.toLocaleString("en");

// A number with its sign, so that a sign is never shown by color alone.
function signed(x, digits = 3) {
  if (x === null) return "NaN";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e-3 && size < 1e5 ? String(Number(size.toPrecision(digits))) : size.toExponential(digits - 1);
  return (x < 0 ? "−" : "+") + text;
}

const unsigned = (x, digits = 4) => signed(x, digits).replace("+", "");

function color(x, largest) {
  if (!x || !largest) return "";
  const strength = (0.08 + 0.42 * Math.abs(x) / largest).toFixed(2);
  return `rgba(var(--${x < 0 ? "minus" : "plus"}), ${strength})`;
}

const sizeOf = (numbers) => numbers.reduce((most, x) => Math.max(most, Math.abs(x ?? 0)), 0);

// What has been computed after `state.step` steps.
const ran = (call) => call < state.step;
const ranBack = (call) => backAt.has(call) && backAt.get(call) < state.step;

function valuesKnown(call, array) {
  return array.isOutput ? ran(call) : array.reads.every(([other]) => ran(other));
}

function gradientsKnown(call, array) {
  if (!array.gradients) return false;
  if (!array.isOutput) return ranBack(call);
  return array.adds.length ? array.adds.every((part) => ranBack(part.call)) : state.step >= calls.length;
}

function arraysOf(call) {
  const { inputs, outputs } = calls[call];
  return [...inputs, ...outputs.map((array) => Object.assign(array, { isOutput: true }))];
}

function nameOf(call) {
  const { op, parameter } = calls[call];
  return parameter ? `${op} ${parameter.replace(/\.(weight|bias)$/, "")}` : op;
}

// The heading of a column; an empty one is a cell like others.
function heading(text, isText = false) {
  return text ? element("th", { scope: "col", class: isText ? "text" : "" }, text) : element("td");
}

// A table of rows; `texts` are the numbers of the columns with text.
function table(headings, rows, texts = []) {
  const cell = (value, i) => element("td", { class: texts.includes(i) ? "text" : "" }, value ?? "");
  const head = headings.map((text, i) => heading(text, texts.includes(i)));
  const lines = rows.map((row) => element("tr", {}, row.map(cell)));
  return element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, lines));
}

const scrolled = (...children) => element("div", { class: "scroll", tabIndex: 0 }, ...children);

function link(text, act) {
  return element("button", { type: "button", class: "link", onclick: act }, text);
}

function goTo(call, array = 0) {
  Object.assign(state, { call, array, cell: null });
  drawGraph();
  drawInspector();
}

// The array that a step shows first: in the backward pass one that gets a gradient.
function firstOf(call) {
  return state.step <= calls.length ? 0 : Math.max(0, calls[call].inputs.findIndex((array) => array.gradients));
}

function moveTo(step) {
  state.step = Math.max(0, Math.min(total, step));
  if (state.step) {
    const isBack = state.step > calls.length;
    state.call = isBack ? data.order[state.step - 1 - calls.length] : state.step - 1;
    Object.assign(state, { array: firstOf(state.call), cell: null, shows: isBack ? "gradients" : "values" });
  }
  if (state.step === total) stop();
  drawControls();
  drawGraph();
  drawInspector();
  drawCalls();
}

function stop() {
  clearInterval(state.timer);
  state.timer = null;
}

function play() {
  if (state.timer) stop();
  else {
    if (state.step === total) state.step = 0;
    state.timer = setInterval(() => moveTo(state.step + 1), 700);
  }
  drawControls();
}

const MOVES = {
  first: () => moveTo(0), back: () => moveTo(state.step - 1), play, next: () => moveTo(state.step + 1),
  loss: () => moveTo(calls.length), last: () => moveTo(total),
};

function drawControls() {
  for (const name of Object.keys(MOVES)) {
    const label = name === "play" && state.timer ? "pause" : name;
    $(name).title = word(label);
    $(name).setAttribute("aria-label", word(label));
  }
  $("play").textContent = word(state.timer ? "pause" : "play");
  $("loss").textContent = word("loss");
  $("first").disabled = $("back").disabled = state.step === 0;
  $("next").disabled = $("last").disabled = state.step === total;
  const pass = word(state.step <= calls.length ? "forward" : "backward");
  $("progress").textContent = state.step ? word("at", state.step, total, pass, nameOf(state.call)) : word("start");
}

function drawAll() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = word("title");
  for (const marked of document.querySelectorAll("[data-word]")) marked.textContent = word(marked.dataset.word);
  $("language").textContent = word("other");
  const isNumber = kindOfTargets() === "number";
  $("about").textContent = word("about", data.model, count) + `${data.loss}${isNumber ? "" : ` ${word("nats")}`}`;
  const short = (text) => text.length > 200 ? `${text.slice(0, 200)}…` : text;
  $("given").textContent = Object.entries(data.given).map(([part, text]) => `${word(part)} ${visible(short(text))}`)
    .join(" · ");
  drawControls();
  drawGraph();
  drawInspector();
  drawCalls();
  drawSections();
}

function begin() {
  for (const [name, act] of Object.entries(MOVES)) $(name).onclick = act;
  $("language").onclick = () => {
    language = language === "zh" ? "en" : "zh";
    drawAll();
  };
  document.addEventListener("keydown", (event) => {
    const inControl = event.target.closest("input, select, summary, .scroll");
    const act = { ArrowRight: "next", ArrowLeft: "back", Home: "first", End: "last" }[event.key];
    if (!act || inControl || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    MOVES[act]();
  });
  drawAll();
}

document.addEventListener("DOMContentLoaded", begin);
