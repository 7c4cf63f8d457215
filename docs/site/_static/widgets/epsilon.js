"use strict";
// The error of a finite difference for every step ε, beside that of a complex step: computed by pyllama.

WIDGETS.epsilon = (place, { steps, errors }) => {
  const width = 560, height = 300, left = 64, right = 30, top = 10, bottom = 40, lowest = -17, highest = 1;
  const names = { complex: said("complex step", "复步法"), central: said("central difference", "中心差分"),
                  forward: said("forward difference", "前向差分") };
  const across = (step) => left + (width - left - right) * (-1 - Math.log10(step)) / 15;
  const down = (error) => top + (height - top - bottom)
    * (highest - Math.min(highest, Math.log10(Math.max(error, 10 ** lowest)))) / (highest - lowest);
  const text = (error) => error === 0 ? "0" : error.toExponential(1).replace("-", "−");
  const power = (k) => `1e${k}`.replace("-", "−");

  const vertical = [-1, -4, -7, -10, -13, -16].flatMap((k) => [
    drawn("line", { class: "grid", x1: across(10 ** k), x2: across(10 ** k), y1: top, y2: height - bottom }),
    drawn("text", { x: across(10 ** k), y: height - bottom + 16, "text-anchor": "middle" }, power(k))]);
  const horizontal = [0, -4, -8, -12, -16].flatMap((k) => [
    drawn("line", { class: "grid", x1: left, x2: width - right, y1: down(10 ** k), y2: down(10 ** k) }),
    drawn("text", { x: left - 6, y: down(10 ** k) + 4, "text-anchor": "end" }, power(k))]);
  const curves = Object.keys(names).map((name) => drawn("polyline", { class: `curve ${name}`,
    points: steps.map((step, k) => `${across(step)},${down(errors[name][k])}`).join(" ") }));
  const legend = element("p", { class: "legend" },
    ...Object.entries(names).map(([name, label]) => element("span", {}, sample(name), label)));
  const dots = Object.keys(names).map((name) => drawn("circle", { class: name, r: 4 }));
  const rule = drawn("line", { class: "rule", y1: top, y2: height - bottom });
  const axis = drawn("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" },
    said("step ε", "步长 ε"));
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label":
    said("Relative error of the slope for each step, on logarithmic axes. The table has the numbers.",
         "各步长下斜率的相对误差，坐标轴取对数。数据见表格。") },
    ...vertical, ...horizontal, axis, rule, ...curves, ...dots);

  const status = element("p", { class: "status", "aria-live": "polite" });
  const control = slider(said("step ε", "步长 ε"), { min: 0, max: steps.length - 1, step: 1 }, 10, show);
  function show(k) {
    control.setAttribute("aria-valuetext", text(steps[k]));
    rule.setAttribute("x1", across(steps[k]));
    rule.setAttribute("x2", across(steps[k]));
    Object.keys(names).forEach((name, i) => {
      dots[i].setAttribute("cx", across(steps[k]));
      dots[i].setAttribute("cy", down(errors[name][k]));
    });
    status.textContent = [`ε = ${text(steps[k])}`,
      ...Object.entries(names).map(([name, label]) => `${label}: ${text(errors[name][k])}`)].join(" · ");
  }
  show(Number(control.value));

  const caption = said("Relative error of the slope along a random direction, against the backward pass",
                       "沿随机方向的斜率相对于反向传播结果的误差");
  const why = said("A wide step truncates the Taylor series. A narrow one subtracts numbers that are almost equal, so "
    + "their digits cancel. The complex step subtracts nothing: its error falls, then stays flat however small ε is.",
    "步长太大，泰勒展开被截断；步长太小，两个几乎相等的数相减，有效数字抵消。复步法没有减法：误差先下降，此后 ε 再小也保持平坦。");
  const rows = steps.map((step, k) => [text(step), ...Object.keys(names).map((name) => text(errors[name][k]))]);
  place.append(element("figure", {}, element("figcaption", {}, element("strong", {}, caption), " ", why),
    legend, picture, control, status, folded(table(caption, ["ε", ...Object.values(names)], rows))));
};
