"use strict";
// A step lights up the lines of the code that it justifies, and brings them into sight if the code is beside it.
// A bug that the reader plants stands in the code, one at a time, and the steps fail that it breaks.

function show(line) {
  const code = document.querySelector("pre.opcode");
  if (line && getComputedStyle(code).position === "sticky")
    code.scrollTop = line.offsetTop - code.offsetTop - code.clientHeight / 3;
}

function light(step, on) {
  const lines = document.querySelectorAll("pre.opcode .line");
  const lit = step.querySelector(".equation").dataset.lines.split(" ").filter(Boolean).map(k => lines[k]);
  for (const line of lit) line.classList.toggle("lit", on);
  if (on) show(lit.find(line => !line.classList.contains("out")));
}

function uproot() {
  for (const bug of document.querySelectorAll(".bug.planted")) {
    bug.classList.remove("planted");
    bug.querySelector(".plant").setAttribute("aria-pressed", "false");
  }
  for (const line of document.querySelectorAll(".line.out")) line.classList.remove("out");
  for (const step of document.querySelectorAll(".step.broken")) step.classList.remove("broken");
  for (const grown of document.querySelectorAll(".grown")) grown.remove();
}

function plant(bug) {
  bug.classList.add("planted");
  bug.querySelector(".plant").setAttribute("aria-pressed", "true");
  const planting = bug.querySelector(".planting"), {first, last} = planting.dataset;
  const out = [...document.querySelectorAll("pre.opcode .line")].slice(first, Number(last) + 1);
  for (const line of out) line.classList.add("out");
  const grown = document.createElement("span");
  grown.className = "grown";
  grown.textContent = planting.textContent + "\n";
  out[0].before(grown);
  show(grown);
  for (const failure of bug.querySelectorAll(".failure")) {
    const step = document.querySelector(failure.querySelector("a.number").hash), copy = failure.cloneNode(true);
    copy.querySelector("a.number").remove();
    copy.classList.add("grown");
    step.classList.add("broken");
    step.append(copy);
  }
}

// act(true) when the mouse or the focus comes to the node, act(false) when it leaves.
function whilePointedAt(node, act) {
  for (const event of ["mouseenter", "focusin"]) node.addEventListener(event, () => act(true));
  for (const event of ["mouseleave", "focusout"]) node.addEventListener(event, () => act(false));
}

document.addEventListener("DOMContentLoaded", () => {
  for (const step of document.querySelectorAll(".step")) whilePointedAt(step, (on) => light(step, on));
  for (const bug of document.querySelectorAll(".bug")) {
    bug.classList.add("live");
    bug.querySelector(".outcome").setAttribute("role", "status");
    bug.querySelector(".plant").addEventListener("click", () => {
      const planted = bug.classList.contains("planted");
      uproot();
      if (!planted) plant(bug);
    });
  }
  const contents = document.querySelector(".toc-title");      // a page has two asides: this one needs a name
  if (contents) {
    contents.id = "toc-title";
    contents.closest("aside").setAttribute("aria-labelledby", contents.id);
  }
});
