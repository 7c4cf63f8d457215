"use strict";
// A line of one pass lights up the lines of the other one that use its value, or whose values it uses.

document.addEventListener("DOMContentLoaded", () => {
  for (const line of document.querySelectorAll(".passes .entry")) {
    const numbers = line.querySelector(".equation").dataset.lines.split(" ").filter(Boolean);
    const others = numbers.map((number) => document.getElementById(`line-${number}`));
    whilePointedAt(line, (on) => others.forEach((other) => other.classList.toggle("lit", on)));
  }
});
