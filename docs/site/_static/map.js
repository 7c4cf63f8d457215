"use strict";
// Choose an op of the map: what is joined with it lights up.  Choose anything else: the ops that are joined with it do.

function joinedWith(item) {
  const own = item.dataset.joined.split(" ").filter(Boolean).map((id) => document.getElementById(id));
  const ops = [...document.querySelectorAll(".map li")].filter((op) => op.dataset.joined.split(" ").includes(item.id));
  return [...own, ...ops];
}

// "Ops: 3. Tests: 20."
function countsIn(items) {
  const columns = [...document.querySelectorAll(".map .column")].map((column) =>
    [column.querySelector(".case").textContent, items.filter((item) => column.contains(item)).length]);
  return columns.filter(([, count]) => count).map(([heading, count]) => `${heading}: ${count}. `).join("");
}

// A line from the op at the left to the other one.  It bends beside the op, and then keeps to the other one's row.
function lineBetween(op, other, origin, gap) {
  const middle = (box) => (box.top + box.bottom) / 2 - origin.top;
  const x = op.right - origin.left, y = middle(op), row = middle(other);
  const bend = `C ${x + gap / 2} ${y} ${x + gap / 2} ${row} ${x + gap} ${row}`;
  return drawn("path", { d: `M ${x} ${y} ${bend} H ${other.left - origin.left}` });
}

function explorable(map) {
  const status = element("p", { class: "map-status", role: "status" });
  const lines = drawn("svg", { "aria-hidden": "true" });
  const items = [...map.querySelectorAll("li")];
  let chosen = null;

  function draw() {
    const gap = parseFloat(getComputedStyle(map).columnGap);
    const pairs = (chosen ? joinedWith(chosen) : []).map((other) =>
      [chosen, other].map((item) => item.getBoundingClientRect()).sort((a, b) => a.left - b.left));
    lines.replaceChildren(...pairs.map((pair) => lineBetween(...pair, map.getBoundingClientRect(), gap)));
  }

  function choose(item) {
    chosen = item;
    const lit = item ? [item, ...joinedWith(item)] : [];
    map.classList.toggle("chosen", item !== null);
    for (const one of items) {
      one.classList.toggle("lit", lit.includes(one));
      one.querySelector("button").setAttribute("aria-pressed", one === item);
    }
    status.replaceChildren(...(item ? summary(item, lit.slice(1)) : [said("Choose a name.", "请选择一个名称。")]));
    draw();
  }

  function summary(item, others) {
    const name = element("strong", { lang: "en" }, item.textContent);
    const page = element("a", { href: item.dataset.page }, said("Open its page", "打开它的页面"));
    return [name, " ", countsIn(others), ...(item.dataset.page ? [page] : [])];
  }

  for (const item of items) {
    item.dataset.page = item.querySelector("a")?.getAttribute("href") ?? "";
    const button = element("button", { type: "button" }, item.textContent);
    button.addEventListener("click", () => choose(item === chosen ? null : item));
    item.replaceChildren(button);
  }
  map.before(status);
  map.prepend(lines);
  map.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });
  addEventListener("resize", draw);
  choose(null);
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".map").forEach(explorable));
