"use strict";
// A step lights up the lines of the code that it justifies, and brings them into sight if the code is beside it.

function light(step, on) {
  const lines = document.querySelectorAll("pre.opcode .line");
  const lit = step.querySelector(".equation").dataset.lines.split(" ").filter(Boolean).map(k => lines[k]);
  for (const line of lit) line.classList.toggle("lit", on);
  const code = document.querySelector("pre.opcode");
  if (on && lit.length && getComputedStyle(code).position === "sticky")
    code.scrollTop = lit[0].offsetTop - code.offsetTop - code.clientHeight / 3;
}

// act(true) when the mouse or the focus comes to the node, act(false) when it leaves.
function whilePointedAt(node, act) {
  for (const event of ["mouseenter", "focusin"]) node.addEventListener(event, () => act(true));
  for (const event of ["mouseleave", "focusout"]) node.addEventListener(event, () => act(false));
}

document.addEventListener("DOMContentLoaded", () => {
  for (const step of document.querySelectorAll(".step")) whilePointedAt(step, (on) => light(step, on));
  const contents = document.querySelector(".toc-title");      // a page has two asides: this one needs a name
  if (contents) {
    contents.id = "toc-title";
    contents.closest("aside").setAttribute("aria-labelledby", contents.id);
  }
});
