"use strict";
// A training step counted: a reader chooses the sizes of a LLaMA, and sees its operations and its memory.

WIDGETS.counting = (place, { models }) => {
  const chosen = { ...Object.values(models)[0] };
  const names = { D: said("width", "宽度"), L: said("blocks", "块数"), H: said("heads", "头数"),
                  G: said("heads of keys and values", "键值头数"), F: said("hidden units", "隐藏单元数"),
                  V: said("vocabulary", "词表大小"), T: said("context", "上下文长度"),
                  B: said("sequences in a batch", "批量中的序列数") };
  const ranges = { D: [32, 8192, 32], L: [1, 96, 1], F: [32, 28672, 32], V: [256, 131072, 256], T: [64, 16384, 64],
                   B: [1, 128, 1] };
  const divisors = (whole) => Array.from({ length: whole }, (_, k) => k + 1).filter((one) => whole % one === 0);
  const lists = { H: () => divisors(chosen.D / 2), G: () => divisors(chosen.H) };      // pairs of a head are turned
  const kinds = [["P", 1, "plus", said("parameters", "参数")], ["P", 1, "plus", said("gradients", "梯度")],
                 ["P", 2, "plus", said("two means of AdamW", "AdamW 的两个均值")],
                 ["S", 1, "plus", said("activations", "激活值")],
                 ["R", 1, "minus", said("activations, recomputed", "激活值（重计算时）")],
                 ["scores", 1, "minus", said("scores of the vocabulary, if saved", "词表得分（若保存）")],
                 ["pairs", 1, "minus", said("scores of attention, if saved", "注意力得分（若保存）")]];
  const bytes = 4;

  const nearest = (list, value) =>
    list.reduce((best, one) => Math.abs(one - value) < Math.abs(best - value) ? one : best);
  const text = (value, units, base) => {
    const power = Math.max(0, Math.min(units.length - 1, Math.floor(Math.log(value) / Math.log(base))));
    return `${Number((value / base ** power).toPrecision(3)).toLocaleString("en")} ${units[power]}`;
  };
  const short = (value) => text(value, ["", "k", "M", "G", "T", "P", "E", "Z"], 1000).trim();
  const memory = (value) => text(bytes * value, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024);

  const values = {}, inputs = {};
  function change(name, value) {
    chosen[name] = value;
    for (const [one, list] of Object.entries(lists)) chosen[one] = nearest(list(), chosen[one]);
    update();
  }

  const controls = Object.entries(names).map(([name, label]) => {
    const [min, max, step] = ranges[name] ?? [0, 0, 1];
    values[name] = element("span");
    inputs[name] = slider(`${label} ${name}`, { min, max, step }, chosen[name],
      (value) => change(name, name in lists ? lists[name]()[value] : value));
    return element("label", {}, `${label} `, element("code", {}, name), ": ", values[name], inputs[name]);
  });

  const numbers = kinds.map(() => element("td"));
  const bars = kinds.map(([, , color]) => element("span", { class: `bar ${color} from-left` }));
  const rows = kinds.map(([, , , label], i) =>
    element("tr", {}, element("th", { scope: "row" }, label), numbers[i], element("td", {}, bars[i])));
  const status = element("p", { class: "status", "aria-live": "polite" });

  function update() {
    for (const [name, input] of Object.entries(inputs)) {
      const list = lists[name]?.();
      if (list) input.max = list.length - 1;
      input.value = list ? list.indexOf(chosen[name]) : chosen[name];
      input.setAttribute("aria-valuetext", chosen[name]);
      values[name].textContent = chosen[name].toLocaleString("en");
    }
    const found = formulas.counting({ ...chosen, K: chosen.D / chosen.H });
    const sizes = kinds.map(([name, times]) => times * found[name]), most = Math.max(...sizes);
    sizes.forEach((size, i) => {
      numbers[i].textContent = memory(size);
      bars[i].style.setProperty("--size", size / most);
    });
    const weights = 6 * chosen.B * chosen.T * found.N, share = 100 * (1 - weights / found.C);
    status.textContent = [`N = ${short(found.N)}`,
      `${said("operations in a step", "每步运算数")}: ${short(found.C)}`,
      `${said("attention's share", "注意力所占比例")}: ${share.toFixed(1)} %`,
      `${said("memory", "内存")}: ${memory(4 * found.P + found.S)}`].join(" · ");
  }

  const buttons = Object.entries(models).map(([name, sizes]) => {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", () => { Object.assign(chosen, sizes); update(); });
    return button;
  });
  const caption = said("A training step, counted", "一个训练步的计数");
  const help = said("Choose a model, or move the sliders. Float32, the whole batch at once, and an embedding table "
    + "that is also the output matrix. The first four bars add up to the memory; the others are for comparison.",
    "选择一个模型，或移动滑块。单精度，整个批量一次计算，嵌入表同时用作输出矩阵。前四条之和是内存；其余的供比较。");
  update();
  place.append(element("figure", {}, element("figcaption", {}, element("strong", {}, caption), " ", help),
    element("p", { class: "models" }, ...buttons), element("div", { class: "controls" }, ...controls), status,
    element("table", { class: "kinds" }, element("caption", {}, said("Memory of a step", "一步的内存")),
      element("tbody", {}, ...rows))));
};
