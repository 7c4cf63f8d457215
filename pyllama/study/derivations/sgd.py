"""Gradient descent with momentum for one number w of the parameters: see SGD in pyllama/training/optim.py.

Arrays      w, the parameter at the start; g_t, its gradient in step t.
            Steps are counted from 0.  Before step 0, v is 0.

Forward     v_t = μ v_{t-1} + g_t
            v_t = Σ_{s : s ≤ t} μ^(t - s) g_s

            A gradient that stays γ is amplified, in the end by 1 / (1 - μ):

            Σ_{s : s ≤ t} μ^(t - s) γ = γ (1 - μ^(t + 1)) / (1 - μ)

            Plain momentum: b_t is the parameter before step t, p_t the one
            after it.

            b_t = p_{t-1} + [t = 0] w
            p_t = b_t - η (v_t + λ b_t)

            Nesterov's rule: c_t is the parameter before step t, q_t the one
            after it.

            c_t = q_{t-1} + [t = 0] w
            q_t = c_t - η (g_t + μ v_t + λ c_t)

            θ is the parameter without the coming move along the momentum,
            a_t before step t and θ_t after it:

            a_t = c_t + η μ v_{t-1}
            θ_t = q_t + η μ v_t
            θ_t = a_t - η (v_t + λ c_t)

            So θ moves with plain momentum, but its gradient is taken at c,
            where the old momentum alone would have moved it.
"""
import numpy as np

from pyllama.study.derivation import Derivation, Step
from pyllama.training.optim import SGD


def code(names: dict) -> dict:
    """The steps of both optimizers: the parameters and the velocity after each step."""
    plain, v = steps(names, nesterov=False)
    ahead, same = steps(names, nesterov=True)
    assert np.array_equal(v, same)
    return {"p": plain, "q": ahead, "v": v}


def steps(names: dict, nesterov: bool) -> tuple[np.ndarray, np.ndarray]:
    p = names["w"].copy()
    optimizer = SGD(p.size, p.dtype, matrices=[slice(0, p.size)], momentum=names["μ"], nesterov=nesterov)
    found = []
    for g in names["g"].T.copy():
        optimizer.step(p, g, names["η"], names["λ"])
        found.append((p.copy(), optimizer.v.copy()))
    ps, vs = (np.stack(rows, axis=1) for rows in zip(*found, strict=True))
    return ps, vs


DERIVATION = Derivation(
    title="Gradient descent with momentum, plain and Nesterov's",
    source="pyllama.training.optim",
    arrays={"w": "rows", "g": "rows T"},
    letters={"s": "T", "t": "T"},
    sizes={"rows": 2, "T": 3},
    constants=dict.fromkeys(("μ", "γ", "η", "λ"), ""),
    code=code,
    steps=(
        Step("v_t = μ v_{t-1} + g_t",
             "A velocity: in each step it keeps the share `μ` and gains the gradient.",
             "v += g"),
        Step("v_t = Σ_{s : s ≤ t} μ^(t - s) g_s",
             "A gradient is multiplied by `μ` once in every step after its own, which is `t - s` times."),
        Step("Σ_{s : s ≤ t} μ^(t - s) γ = γ (1 - μ^(t + 1)) / (1 - μ)",
             "A geometric series.  With `μ` of 0.9 the steps become ten times as long where the gradient stays the "
             "same, while gradients that alternate cancel."),
        Step("b_t = p_{t-1} + [t = 0] w", "Each step continues from the one before; the first one has `w`."),
        Step("p_t = b_t - η (v_t + λ b_t)",
             "A step along the velocity.  The decay `λ b` is not part of the velocity: it is decoupled.",
             "p -= lr * (d + decay * p)"),
        Step("c_t = q_{t-1} + [t = 0] w", "The same for Nesterov's rule, which takes other steps."),
        Step("q_t = c_t - η (g_t + μ v_t + λ c_t)",
             "The velocity counts once more, as the next step will count it: `v_{t+1}` begins with `μ v_t`.",
             "d = g + momentum * v if nesterov else v"),
        Step("a_t = c_t + η μ v_{t-1}",
             "Nesterov's own rule has two points.  The code keeps `c`, so `a` is found by undoing the last move along "
             "the momentum, `-η μ v_{t-1}`."),
        Step("θ_t = q_t + η μ v_t", "The same after the step."),
        Step("θ_t = c_t - η (g_t + λ c_t)",
             "In `q_t` and in `θ_t`, the terms `η μ v_t` cancel.", extra=True),
        Step("θ_t = a_t - η (v_t + λ c_t)",
             "`c_t` is `a_t - η μ v_{t-1}`, and `μ v_{t-1} + g_t` is `v_t`.  This is the step of plain momentum, but "
             "`g_t` is the gradient at `c_t` and not at `a_t`."),
    ))
