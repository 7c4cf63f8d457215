"use strict";
// A step lights up the line of the code that it justifies.

function squeezed(text) {
  return text.split(/\s+/).join(" ").trim();
}

function light(step, on) {
  const code = squeezed(step.querySelector(".equation").dataset.code);
  if (!code) return;
  for (const line of document.querySelectorAll("pre.opcode .line"))
    if (squeezed(line.textContent).includes(code)) line.classList.toggle("lit", on);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const step of document.querySelectorAll(".step")) {
    step.tabIndex = 0;
    for (const event of ["mouseenter", "focusin"]) step.addEventListener(event, () => light(step, true));
    for (const event of ["mouseleave", "focusout"]) step.addEventListener(event, () => light(step, false));
  }
});
