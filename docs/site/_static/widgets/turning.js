"use strict";
// A query and a key of rope, pair by pair: their positions turn them, and their score depends on the distance alone.

WIDGETS.turning = (place, { q, k, base }) => {
  const pairs = q.length / 2, size = 140, radius = 55;
  const chosen = { position: 3, distance: 2 };
  const arrows = { complex: [], central: [] };                          // of q and of k, a pair each

  const circles = Array.from({ length: pairs }, (_, i) => {
    const at = `translate(${size * (i + 0.5)} ${radius + 5})`;
    for (const of of Object.values(arrows)) of.push([drawn("line"), drawn("circle", { r: 4 })]);
    const parts = Object.entries(arrows).map(([name, of]) => drawn("g", { class: `curve ${name}` }, ...of[i]));
    const label = drawn("text", { y: radius + 24, "text-anchor": "middle" }, `θ = ${base ** (-i / pairs)}`);
    return drawn("g", { transform: at }, drawn("circle", { class: "grid", r: radius }), ...parts, label);
  });
  const picture = drawn("svg", { viewBox: `0 0 ${size * pairs} ${2 * radius + 35}`, role: "img", "aria-label":
    said("Every pair of the query and the key as two arrows. The table has the numbers.",
         "查询与键的每一对分量画成两个箭头。数据见表格。") }, ...circles);

  function point(of, y) {
    of.forEach(([line, tip], i) => {
      const x2 = radius * y[i], y2 = -radius * y[i + pairs];
      filled(line, { x1: 0, y1: 0, x2, y2 }, []);
      filled(tip, { cx: x2, cy: y2 }, []);
    });
  }

  const status = element("p", { class: "status", "aria-live": "polite" }), numbers = element("div");
  function show() {
    const { position, distance } = chosen;
    const query = formulas.rope({ x: q, position: position + distance, base });
    const key = formulas.rope({ x: k, position, base });
    point(arrows.complex, query.y);
    point(arrows.central, key.y);
    const terms = query.theta.map((_, i) => query.y[i] * key.y[i] + query.y[i + pairs] * key.y[i + pairs]);
    status.textContent = said(`query at ${position + distance}, key at ${position}: q · k = ${signed(sum(terms))}`,
                              `查询在 ${position + distance}，键在 ${position}：q · k = ${signed(sum(terms))}`);
    const rows = terms.map((term, i) => [i, query.theta[i], signed(query.angle[i], 3), signed(key.angle[i], 3),
                                         signed(term)].map(String));
    numbers.replaceChildren(table(said("The pairs, their angles and their parts of q · k", "各对的角度及其对 q · k 的贡献"),
      [said("pair", "对"), "θ", said("angle of q", "q 的角度"), said("angle of k", "k 的角度"), "q · k"], rows));
  }

  const names = { position: said("position of the key", "键的位置"),
                  distance: said("distance of the query from the key", "查询与键的距离") };
  const controls = Object.entries(names).map(([name, label]) => element("label", {}, label,
    slider(label, { min: 0, max: 100, step: 1 }, chosen[name], (value) => { chosen[name] = value; show(); })));
  const legend = element("p", { class: "legend" },
    ...[["complex", said("query", "查询")], ["central", said("key", "键")]].map(([name, label]) =>
      element("span", {}, sample(name), label)));
  const caption = said("Pairs turn with the position", "各对分量随位置旋转");
  const help = said("Move the position: all arrows turn, and the score q · k stays. Only the distance changes it.",
                    "移动位置：所有箭头都在转，而得分 q · k 不变。只有距离会改变它。");
  show();
  place.append(element("figure", {}, element("figcaption", {}, element("strong", {}, caption), " ", help),
    legend, picture, ...controls, status, numbers));
};
