"use strict";
// The parts of widgets.  WIDGETS.NAME(place, data) fills a place <div class="widget" data-widget="NAME">, which holds
// the data as JSON.

const WIDGETS = {};
const said = (english, chinese) => document.documentElement.lang.startsWith("zh") ? chinese : english;

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const element = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const drawn = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// "+0.5000", "−0.5000" or "0.0000": a number that rounds to zero has no sign.
function signed(value, digits = 4) {
  const size = Math.abs(value).toFixed(digits);
  return (Number(size) === 0 ? "" : value < 0 ? "−" : "+") + size;
}

function slider(label, range, value, act) {
  const control = element("input", { type: "range", "aria-label": label, ...range });
  control.value = value;
  control.addEventListener("input", () => act(Number(control.value)));
  return control;
}

function table(caption, headings, rows) {
  const cell = (value, j) => j ? element("td", {}, value) : element("th", { scope: "row" }, value);
  return element("table", {}, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...headings.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))));
}

// The line of a legend.
const sample = (name) => drawn("svg", { viewBox: "0 0 30 6", "aria-hidden": "true" },
  drawn("line", { class: `curve ${name}`, x1: 0, x2: 30, y1: 3, y2: 3 }));

// A table behind a picture, folded until the reader asks for it.
const folded = (table) => element("details", {},
  element("summary", {}, said("The picture as a table", "图中数据的表格")), table);

document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".widget")) {
    const data = JSON.parse(place.querySelector("script").textContent);
    WIDGETS[place.dataset.widget](place, data);
  }
});
