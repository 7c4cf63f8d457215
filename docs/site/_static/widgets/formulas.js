"use strict";
// The formulas of the derivations, row by row.  tests/test_widgets.py compares them with pyllama, in Node.

const sum = (a) => a.reduce((total, value) => total + value, 0);
const mean = (a) => sum(a) / a.length;
const dot = (a, b) => sum(a.map((value, j) => value * b[j]));
const transposed = (rows) => rows[0].map((_, j) => rows.map((row) => row[j]));
const multiplied = (a, b) => a.map((row) => transposed(b).map((column) => dot(row, column)));
const scaled = (a, scale) => a.map((row) => row.map((value) => scale * value));
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

  attention({ q, k, v, dy, mask }) {
    const scale = q[0].length ** -0.5, z = scaled(multiplied(q, transposed(k)), scale);
    const p = z.map((row, t) => {
      const most = Math.max(...row.filter((_, s) => mask[t][s]));
      const e = row.map((value, s) => mask[t][s] ? Math.exp(value - most) : 0), total = sum(e);
      return e.map((value) => total ? value / total : 0);
    });
    const y = multiplied(p, v), dp = multiplied(dy, transposed(v));
    const dz = p.map((row, t) => row.map((value, s) => value * (dp[t][s] - dot(row, dp[t]))));
    const dq = scaled(multiplied(dz, k), scale), dk = scaled(multiplied(transposed(dz), q), scale);
    return { z, p, y, dp, dz, dq, dk, dv: multiplied(transposed(p), dy) };
  },

  // The points of a path over ½ Σ_j c_j p_j², from its start on; the gradient of p_j is c_j p_j.
  adamw({ start, curvatures, steps, lr, betas, eps, decay }) {
    let p = start, m = start.map(() => 0), v = m;
    const path = [p];
    for (let t = 1; t <= steps; t++) {
      const g = product(curvatures, p);
      m = m.map((one, j) => betas[0] * one + (1 - betas[0]) * g[j]);
      v = v.map((one, j) => betas[1] * one + (1 - betas[1]) * g[j] ** 2);
      const u = m.map((one, j) => one / (1 - betas[0] ** t) / (Math.sqrt(v[j] / (1 - betas[1] ** t)) + eps));
      p = p.map((one, j) => one - lr * (u[j] + decay * one));
      path.push(p);
    }
    return { path };
  },

  sgd({ start, curvatures, steps, lr }) {
    const path = [start];
    for (let t = 1; t <= steps; t++)
      path.push(path.at(-1).map((one, j) => one - lr * curvatures[j] * one));
    return { path };
  },

  // The derivation "counting": C with hidden pairs skipped, R with recomputed blocks.  Numbers, not bytes.
  counting({ B, T, D, H, G, K, F, V, L }) {
    const n = B * T, w = 2 * D * H * K + 2 * D * G * K + 3 * D * F, N = L * w + V * D, P = N + (2 * L + 1) * D;
    const s = n * (4 * D + 3 * H * K + 2 * G * K + 3 * F + H + 2);
    return { N, P, C: 6 * n * (N + L * (T + 1) * H * K), S: L * s, R: L * n * D + s,
             scores: n * V, pairs: L * n * H * T };
  },
};

if (typeof module !== "undefined") module.exports = formulas;
