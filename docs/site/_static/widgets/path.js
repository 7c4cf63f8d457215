"use strict";
// The paths of AdamW and of SGD over a quadratic that is steeper in one direction than in the other.

WIDGETS.path = (place, { start, betas, eps, steps }) => {
  const chosen = { steepness: 10, adamw: 0.1, sgd: 0.1, decay: 0 };
  const labels = { steepness: said("steepness c of the vertical direction", "竖直方向的曲率 c"),
                   adamw: said("learning rate of AdamW", "AdamW 的学习率"), sgd: said("learning rate of SGD", "SGD 的学习率"),
                   decay: said("weight decay λ of AdamW", "AdamW 的权重衰减 λ") };
  const ranges = { steepness: { min: 1, max: 30, step: 1 }, adamw: { min: 0.01, max: 0.5, step: 0.01 },
                   sgd: { min: 0.01, max: 0.5, step: 0.01 }, decay: { min: 0, max: 1, step: 0.05 } };
  const names = { adamw: "AdamW", sgd: "SGD" }, styles = { adamw: "complex", sgd: "central" };
  const outside = 1e4;                                      // of the picture: where a path leaves that diverges
  const point = (p) => p.map((one, j) => Math.max(-outside, Math.min(outside, (j ? -100 : 100) * one)));

  const contours = drawn("g"), paths = drawn("g");
  const picture = drawn("svg", { viewBox: "-260 -150 520 300", role: "img", "aria-label":
    said("Contours of the quadratic and the two paths. The table has the numbers.", "二次函数的等高线与两条路径。数据见表格。") },
    contours, drawn("path", { class: "grid", d: "M-6 0H6M0 -6V6" }), paths);
  const status = element("p", { class: "status", "aria-live": "polite" }), numbers = element("div");

  function show() {
    const curvatures = [1, chosen.steepness], shared = { start, curvatures, steps };
    const found = { adamw: formulas.adamw({ ...shared, lr: chosen.adamw, betas, eps, decay: chosen.decay }).path,
                    sgd: formulas.sgd({ ...shared, lr: chosen.sgd }).path };
    const loss = (p) => sum(p.map((one, j) => curvatures[j] * one * one)) / 2;
    contours.replaceChildren(...[0.1, 0.5, 1, 2, 4, 8].map((height) => drawn("ellipse", { class: "grid",
      rx: 100 * Math.sqrt(2 * height), ry: 100 * Math.sqrt(2 * height / chosen.steepness) })));
    paths.replaceChildren(...Object.entries(found).flatMap(([name, path]) => [
      drawn("polyline", { class: `curve ${styles[name]}`, points: path.map(point).join(" ") }),
      ...path.map(point).map(([cx, cy]) => drawn("circle", { class: styles[name], r: 3, cx, cy }))]));
    const text = (value) => value < 1e4 ? value.toPrecision(3) : value.toExponential(1);
    status.textContent = [said(`loss after ${steps} steps`, `${steps} 步后的损失`),
      ...Object.entries(found).map(([name, path]) => `${names[name]}: ${text(loss(path.at(-1)))}`)].join(" · ");
    numbers.replaceChildren(table(said("Loss at every step", "每一步的损失"), [said("step", "步"), ...Object.values(names)],
      found.sgd.map((_, t) => [String(t), ...Object.values(found).map((path) => text(loss(path[t])))])));
  }

  const controls = Object.keys(chosen).map((name) => {
    const value = element("span", {}, String(chosen[name]));
    const control = slider(labels[name], ranges[name], chosen[name], (number) => {
      value.textContent = chosen[name] = number;
      show();
    });
    return element("label", {}, `${labels[name]}: `, value, control);
  });
  const legend = element("p", { class: "legend" },
    ...Object.keys(names).map((name) => element("span", {}, sample(styles[name]), names[name])));
  const caption = said("AdamW and SGD on the loss ½ (x² + c y²)", "AdamW 与 SGD：损失 ½ (x² + c y²)");
  const help = said("Without decay, AdamW's first step has the same length in both directions, however steep they are. "
    + "SGD diverges if its learning rate exceeds 2/c.", "没有权重衰减时，AdamW 的第一步在两个方向上一样长，与曲率无关。SGD 的学习率超过 2/c 就会发散。");
  show();
  place.append(element("figure", {}, element("figcaption", {}, element("strong", {}, caption), " ", help),
    legend, picture, ...controls, status, folded(numbers)));
};
