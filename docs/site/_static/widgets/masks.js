"use strict";
// One head of attention: a reader hides keys, and picks a gradient to see the sum that it is.

WIDGETS.masks = (place, inputs) => {
  const mask = inputs.mask.map((row) => [...row]), scale = inputs.q[0].length ** -0.5;
  const terms = {                                           // of each gradient at [row, column]: the factors of term j
    dq: (t, i, s) => [["dz", t, s], ["k", s, i]],
    dk: (s, i, t) => [["dz", t, s], ["q", t, i]],
    dv: (s, i, t) => [["p", t, s], ["dy", t, i]],
  };
  const cells = {};
  let chosen = ["dk", 1, 0];

  function act(name, i, j) {
    if (name === "mask") mask[i][j] = 1 - mask[i][j];
    else chosen = [name, i, j];
    update();
  }

  function cell(name, i, j) {
    const isButton = name === "mask" || name in terms;
    const node = element(isButton ? "button" : "span", isButton ? { type: "button" } : {});
    if (isButton) node.addEventListener("click", () => act(name, i, j));
    return node;
  }

  function matrix(name, rows) {
    cells[name] = rows.map((row, i) => row.map((_, j) => cell(name, i, j)));
    return element("table", { class: "matrix" }, element("caption", {}, element("code", {}, name)),
      element("tbody", {}, ...cells[name].map((row) =>
        element("tr", {}, ...row.map((node) => element("td", {}, node))))));
  }

  const status = element("p", { class: "status", "aria-live": "polite" });
  const computed = () => ({ ...inputs, mask, ...formulas.attention({ ...inputs, mask }) });

  function update() {
    const arrays = computed(), [name, row, column] = chosen;
    const sums = mask.map((_, j) => terms[name](row, column, j));
    const isUsed = (...at) => sums.some((factors) => factors.some((one) => one.join() === at.join()));
    for (const [of, rows] of Object.entries(cells)) rows.forEach((nodes, i) => nodes.forEach((node, j) => {
      const isChosen = of === "mask" ? mask[i][j] === 1 : chosen.join() === [of, i, j].join();
      const isHidden = ["z", "p", "dp", "dz"].includes(of) && !mask[i][j];
      node.textContent = of === "mask" ? mask[i][j] : isHidden ? "·" : signed(arrays[of][i][j], 2);
      node.parentElement.className = isUsed(of, i, j) ? "used" : "";
      if (node.tagName !== "BUTTON") return;
      node.setAttribute("aria-pressed", isChosen);
      node.setAttribute("aria-label", `${of}[${i},${j}] ${node.textContent}`);
    }));
    const shown = sums.map((factors) => factors.map(([of, i, j]) => signed(arrays[of][i][j])).join(" × "));
    const factor = name === "dv" ? "" : `${signed(scale)} × `;
    const value = signed(arrays[name][row][column]);
    status.textContent = `${name}[${row},${column}] = ${factor}(${shown.join(" + ")}) = ${value}`;
  }

  const caption = said("Which keys a query sees, and what that does to the gradients", "查询看得见哪些键，以及对梯度的影响");
  const help = said("Rows are queries, columns are keys. Press a cell of the mask to hide a key or to show it. "
    + "Press a cell of dq, dk or dv to outline the numbers that it sums.",
    "行是查询，列是键。按掩码的格子可隐藏或显示一个键；按 dq、dk 或 dv 的格子可框出它所求和的数。");
  const order = ["mask", "z", "p", "dz", "q", "k", "v", "dy", "y", "dq", "dk", "dv"], arrays = computed();
  place.append(element("figure", {}, element("figcaption", {}, element("strong", {}, caption), " ", help),
    element("div", { class: "matrices" }, ...order.map((name) => matrix(name, arrays[name]))), status));
  update();
};
