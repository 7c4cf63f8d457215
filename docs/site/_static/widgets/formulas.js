"use strict";
// The formulas of the derivations, row by row.  tests/test_widgets.py compares them with pyllama, in Node.

const sum = (a) => a.reduce((total, value) => total + value, 0);
const mean = (a) => sum(a) / a.length;
const product = (a, b) => a.map((value, j) => value * b[j]);

const formulas = {
  rms_norm({ x, w, dy }, eps = 1e-5) {
    const r = (mean(product(x, x)) + eps) ** -0.5;
    const n = x.map((value) => value * r), y = product(w, n);
    const g = product(w, dy), along = mean(product(g, n));
    const dx = g.map((value, j) => r * (value - n[j] * along)), dw = product(dy, n);
    return { r, n, y, g, dx, dw };
  },

  softmax({ x, dy }) {
    const m = Math.max(...x), lse = m + Math.log(sum(x.map((value) => Math.exp(value - m))));
    const y = x.map((value) => Math.exp(value - lse)), average = sum(product(dy, y));
    const dx = y.map((value, j) => value * (dy[j] - average));
    return { lse, y, dx };
  },

  rope({ x, position, base }) {
    const P = x.length / 2, theta = Array.from({ length: P }, (_, k) => base ** (-k / P));
    const angle = theta.map((one) => position * one), cos = angle.map(Math.cos), sin = angle.map(Math.sin);
    const a = x.slice(0, P), b = x.slice(P);
    const y = [...a.map((one, k) => one * cos[k] - b[k] * sin[k]), ...a.map((one, k) => one * sin[k] + b[k] * cos[k])];
    return { theta, angle, y };
  },
};

if (typeof module !== "undefined") module.exports = formulas;
