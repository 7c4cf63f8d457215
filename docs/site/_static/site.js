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

document.addEventListener("DOMContentLoaded", () => {
  for (const step of document.querySelectorAll(".step")) {
    for (const event of ["mouseenter", "focusin"]) step.addEventListener(event, () => light(step, true));
    for (const event of ["mouseleave", "focusout"]) step.addEventListener(event, () => light(step, false));
  }
  const contents = document.querySelector(".toc-title");      // a page has two asides: this one needs a name
  if (contents) {
    contents.id = "toc-title";
    contents.closest("aside").setAttribute("aria-labelledby", contents.id);
  }
});
