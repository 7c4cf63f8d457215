"""Clipping a gradient to a norm: see global_norm and clip_scale in pyllama/training/optim.py.

Arrays      g [D], the gradient of all parameters together, as one vector;
            M, the largest norm that it may have.

Forward     n = √Σ_i g_i²
            s = min(1, M / n)
            g'_i = s g_i

            The length is bounded, and the direction stays:

            √Σ_i g'_i² = s n = min(n, M)
            g'_i / √Σ_j g'_j² = g_i / n

            A gradient of length M / 2 stays as it is:

            h_i = ½ M g_i / n
            √Σ_i h_i² = ½ M
            u = min(1, M / √Σ_i h_i²) = 1

            One of length 2 M is halved:

            k_i = 2 M g_i / n
            v = min(1, M / √Σ_i k_i²) = ½

            A step of plain gradient descent has at most the length η M:

            q_i = p_i - η g'_i
            √Σ_i (q_i - p_i)² = η min(n, M)

            To first order, the loss still falls as fast as it can in a step
            of this length, since the step goes against the gradient:

            Σ_i g_i (q_i - p_i) = -η n min(n, M)
            (Σ_i g_i (q_i - p_i))² = (Σ_i g_i²) Σ_i (q_i - p_i)²
"""
from pyllama.study.derivation import Derivation, Step
from pyllama.training.optim import SGD, clip_scale, global_norm


def code(names: dict) -> dict:
    """The norm, the factor and the clipped step of the gradient; the factors of a short and of a long gradient."""
    norm, q, short, long = global_norm(names["g"]), names["p"].copy(), names["h"].copy(), names["k"].copy()
    scale, *others = (clip_scale(one, names["M"]) for one in (norm, global_norm(short), global_norm(long)))
    SGD(q.size, q.dtype, matrices=[]).step(q, names["g"], names["η"], 0.0, scale)
    return {"n": norm, "s": scale, "u": others[0], "v": others[1], "q": q}


DERIVATION = Derivation(
    title="Clipping a gradient to a norm",
    source="pyllama.training.optim",
    arrays={"g": "D", "p": "D"},
    letters={"i": "D", "j": "D"},
    sizes={"D": 2},
    constants={"M": "", "η": ""},
    code=code,
    steps=(
        Step("n = √Σ_i g_i²", "The Euclidean length of the whole gradient: one number, whatever the matrices are.",
             "squares += float(np.square(block, dtype=np.float64).sum())"),
        Step("s = min(1, M / n)", "1 for a gradient that is short enough, else what makes it `M` long.",
             "return max_norm / norm if max_norm and max_norm < norm < math.inf else 1.0"),
        Step("g'_i = s g_i", "One factor for all numbers.", "return (g * np.float64(scale)).astype(g.dtype)"),
        Step("√Σ_i g'_i² = s n = min(n, M)", "A positive factor goes out of the root, and `n` times `M / n` is `M`."),
        Step("g'_i / √Σ_j g'_j² = g_i / n",
             "The factor cancels.  Had each number been clipped by itself, the vector would turn toward the small "
             "ones."),
        Step("h_i = ½ M g_i / n", "A gradient of the same direction whose length is known."),
        Step("√Σ_i h_i² = ½ M", "`g / n` has the length 1."),
        Step("u = min(1, M / √Σ_i h_i²) = 1", "`M` is twice the length, so 1 is the smaller number."),
        Step("k_i = 2 M g_i / n", "The same direction, twice as long as it may be."),
        Step("v = min(1, M / √Σ_i k_i²) = ½", "`M` is half of the length."),
        Step("q_i = p_i - η g'_i", "A step of gradient descent.", "p -= lr * (d + decay * p)"),
        Step("√Σ_i (q_i - p_i)² = η min(n, M)", "The step is `η` times the clipped gradient."),
        Step("Σ_i g_i (q_i - p_i) = -η n min(n, M)",
             "The change of the loss to first order.  `-η s Σ_i g_i²` is `-η s n²`, and `s n` is known from above."),
        Step("(Σ_i g_i (q_i - p_i))² = (Σ_i g_i²) Σ_i (q_i - p_i)²",
             "In Cauchy and Schwarz's inequality, the left side is at most the right one for steps of any direction.  "
             "So no step of this length lowers the loss more."),
    ))
