"""AdamW for one number w of the parameters, step by step: see AdamW in pyllama/training/optim.py.

Arrays      w, the parameter at the start; g_t, its gradient in step t.
            Steps are counted from 0.  Before step 0, m and v are 0.
Options     η, the learning rate; λ, the decay; β₁ and β₂, how much of the
            means m and v is kept in a step; ε, a small number.

Forward     m_t = β₁ m_{t-1} + (1 - β₁) g_t
            v_t = β₂ v_{t-1} + (1 - β₂) g_t²
            m_t = (1 - β₁) Σ_{s : s ≤ t} β₁^(t - s) g_s
            v_t = (1 - β₂) Σ_{s : s ≤ t} β₂^(t - s) g_s²

            The weights of a mean add up to 1.  These do not:

            (1 - β₁) Σ_{s : s ≤ t} β₁^(t - s) = 1 - β₁^(t + 1)

            While the expectation E[g] of the gradient does not change:

            E[m_t] = (1 - β₁^(t + 1)) E[g]
            E[v_t] = (1 - β₂^(t + 1)) E[g²]

            Divided by these factors, the expectations are those of g and g²:

            m'_t = m_t / (1 - β₁^(t + 1))
            v'_t = v_t / (1 - β₂^(t + 1))
            E[m'_t] = E[g]
            E[v'_t] = E[g²]

            b_t is the parameter before step t, p_t the one after it:

            b_t = p_{t-1} + [t = 0] w
            u_t = m'_t / (√v'_t + ε)
            p_t = b_t - η (u_t + λ b_t)
                = (1 - η λ) b_t - η u_t

            The first step has the same length for every gradient:

            m'_0 = g_0,   v'_0 = g_0²
            m'_0² / v'_0 = 1
            m_0² / v_0 = (1 - β₁)² / (1 - β₂)

            With the decay in the gradient instead (L2 regularization), the
            mean n has a second part, a mean of parameters:

            n_t = β₁ n_{t-1} + (1 - β₁) (g_t + λ b_t)
            a_t = β₁ a_{t-1} + (1 - β₁) b_t
            n_t = m_t + λ a_t
            n_t / (√v'_t + ε) = m_t / (√v'_t + ε) + λ a_t / (√v'_t + ε)

            So the decay would be divided by the size of the gradients.
"""
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np

from pyllama.study.derivation import Derivation, Step
from pyllama.training.optim import AdamW


def difference(beta: Fraction, power: int, corrected: bool) -> str:
    """Compare the expectation of a moving mean of g^power with (1 - β^(t+1)) E[g^power], or with E[g^power] if it is
    corrected, by enumeration: g is one of two numbers in each of three steps."""
    values, shares = (Fraction(-1), Fraction(2)), (Fraction(1, 4), Fraction(3, 4))
    expected = sum(share * g ** power for g, share in zip(values, shares, strict=True))
    for t in range(3):
        total = Fraction(0)
        for choices in product((0, 1), repeat=t + 1):
            mean, share = Fraction(0), Fraction(1)
            for k in choices:
                mean = beta * mean + (1 - beta) * values[k] ** power
                share *= shares[k]
            total += share * (mean / (1 - beta ** (t + 1)) if corrected else mean)
        right = expected if corrected else (1 - beta ** (t + 1)) * expected
        if total != right:
            return f"in step {t} the expectation is {total}, not {right}"
    return ""


def expectation(power: int, corrected: bool = False) -> Callable[[], str]:
    return lambda: difference(Fraction(9, 10), power, corrected)


def code(names: dict) -> dict:
    """The optimizer's steps of all numbers at once: p, m and v after each step."""
    p = names["w"].copy()
    optimizer = AdamW(p.size, p.dtype, matrices=[slice(0, p.size)], betas=(names["β₁"], names["β₂"]), eps=names["ε"])
    steps = []
    for g in names["g"].T.copy():
        optimizer.step(p, g, names["η"], names["λ"])
        steps.append((p.copy(), optimizer.m.copy(), optimizer.v.copy()))
    return {name: np.stack(rows, axis=1) for name, rows in zip("pmv", zip(*steps, strict=True), strict=True)}


DERIVATION = Derivation(
    title="AdamW: bias correction and decoupled decay",
    source="pyllama.training.optim",
    arrays={"w": "rows", "g": "rows T"},
    letters={"s": "T", "t": "T"},
    sizes={"rows": 2, "T": 3},
    constants=dict.fromkeys(("β₁", "β₂", "ε", "η", "λ"), ""),
    code=code,
    steps=(
        Step("m_t = β₁ m_{t-1} + (1 - β₁) g_t",
             "A moving mean of the gradients: in each step it forgets the share `1 - β₁` of what it was and takes in "
             "as much of the new gradient.",
             "m += (1 - b1) * g"),
        Step("v_t = β₂ v_{t-1} + (1 - β₂) g_t²",
             "The same of the squares, which measures the size of the gradients without their signs.",
             "v += (1 - b2) * (g * g)"),
        Step("m_t = β₁ (β₁ m_{t-2} + (1 - β₁) g_{t-1}) + (1 - β₁) g_t",
             "The line of `m` for the step before, put into that of this step.  Do so again until step 0.", extra=True),
        Step("m_t = (1 - β₁) Σ_{s : s ≤ t} β₁^(t - s) g_s",
             "A gradient is multiplied by `β₁` once in every step after its own, which is `t - s` times."),
        Step("v_t = (1 - β₂) Σ_{s : s ≤ t} β₂^(t - s) g_s²", "The same for the squares."),
        Step("(1 - β₁) Σ_{s : s ≤ t} β₁^(t - s) = 1 - β₁^(t + 1)",
             "A geometric series: `1 - β₁` times `1 + β₁ + β₁²` is `1 - β₁³`, since all terms between the first and "
             "the last cancel."),
        Step("E[m_t] = (1 - β₁^(t + 1)) E[g]",
             "The expectation of a sum is the sum of the expectations.  Each of these is E[g], if the gradients of all "
             "steps come from one distribution.  It is checked exactly, over all gradients of three steps.",
             check=expectation(1)),
        Step("E[v_t] = (1 - β₂^(t + 1)) E[g²]", "The same for the squares.", check=expectation(2)),
        Step("m'_t = m_t / (1 - β₁^(t + 1))",
             "`m` starts at 0, so it is too small at first.  The factor is known, so it can be divided out.  The code "
             "counts steps from 1, so its t is `t + 1` here.",
             "d = m / (np.sqrt(v) / c2 + eps) / c1"),
        Step("v'_t = v_t / (1 - β₂^(t + 1))",
             "`β₂` is near 1, so without this `√v` would be far too small at first, and the steps far too long."),
        Step("E[m'_t] = E[g]",
             "The factor is a number, so it can be divided out of the expectation, too: `m'` is unbiased from the "
             "first step on.",
             check=expectation(1, corrected=True)),
        Step("E[v'_t] = E[g²]", "And so is `v'`.", check=expectation(2, corrected=True)),
        Step("b_t = p_{t-1} + [t = 0] w",
             "The parameter before step `t`: what the step before left, and `w` at first."),
        Step("u_t = m'_t / (√v'_t + ε)",
             "The mean gradient as a multiple of its usual size, so every parameter moves at the same speed.  `ε` "
             "keeps the quotient finite."),
        Step("p_t = b_t - η (u_t + λ b_t)",
             "A step against the mean gradient, and a decay that keeps weights small.  The decay is added after the "
             "quotient: it is decoupled.",
             "p -= lr * (d + decay * p)"),
        Step("= (1 - η λ) b_t - η u_t", "So in each step all weights shrink by the same factor."),
        Step("m'_0 = g_0, v'_0 = g_0²", "In step 0 both corrections cancel the factors `1 - β₁` and `1 - β₂` exactly."),
        Step("m'_0² / v'_0 = 1", "So `u_0` is 1 or -1, up to `ε`, and the first step has the length `η`."),
        Step("m_0² / v_0 = (1 - β₁)² / (1 - β₂)",
             "Without the corrections it would have the length `(1 - β₁) / √(1 - β₂)` times `η`: 3.2 times for "
             "`β₂ = 0.999`.  So would that of a row which is first looked up late, if it did not count its own steps: "
             "with sparse updates, `t` is the number of steps that have looked up the row before."),
        Step("n_t = β₁ n_{t-1} + (1 - β₁) (g_t + λ b_t)",
             "The penalty `½ λ b²` has the gradient `λ b`.  With L2 regularization, `g` includes it."),
        Step("a_t = β₁ a_{t-1} + (1 - β₁) b_t", "The same moving mean, of the parameter itself."),
        Step("n_t = m_t + λ a_t", "A moving mean of a sum is the sum of the moving means."),
        Step("n_t / (√v'_t + ε) = m_t / (√v'_t + ε) + λ a_t / (√v'_t + ε)",
             "A weight with large gradients would hardly decay, because its decay is divided by `√v'`, too.  (`v'` "
             "would change as well.)  Decoupled, all weights decay alike."),
    ))
