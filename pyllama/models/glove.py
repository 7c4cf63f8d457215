"""GloVe (Pennington, Socher & Manning, 2014): word vectors whose dot products fit the logs of cooccurrence counts.

The parameters are two matrices [V D] with a bias [V] each: "input" for center words, "output" for context words.

Axes: D model, V vocabulary, N pairs of words.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyllama import ops
from pyllama.errors import UserError
from pyllama.low import widened
from pyllama.models.recompute import recomputed
from pyllama.models.words import WordsConfig, laid_out, visit
from pyllama.rng import generator
from pyllama.text.tokens import Tokens


@dataclass(frozen=True)
class GloveConfig(WordsConfig):
    """GloVe's settings; the window is the paper's."""

    TYPE = "glove"

    window: int = 10
    x_max: float = 100.0                        # count from which a pair has weight 1
    alpha: float = 0.75                         # exponent of the weight (x / x_max)^α of rarer pairs

    def __post_init__(self):
        super().__post_init__()
        if not self.x_max > 0:
            raise UserError(f"x_max is {self.x_max}; it must be above 0")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha is {self.alpha}; it must lie in 0 <= a <= 1")


def init(c: GloveConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """All parameters uniform within ±1/2D, as in the authors' program."""
    rng = generator(seed, "init")

    def table():
        return {"weight": (rng.uniform(-0.5, 0.5, (c.vocab_size, c.hidden_size)) / c.hidden_size).astype(dtype),
                "bias": (rng.uniform(-0.5, 0.5, c.vocab_size) / c.hidden_size).astype(dtype)}

    return {"input": table(), "output": table()}


def loss(centers, contexts, counts, p, c, *, recompute=False):
    """Mean weighted squared error of pairs with counts > 0: centers, contexts, counts [N] -> a 0-d float.

    See ops/glove.py.  back(dvalue=1.0) gives the gradients of p.
    """
    w, v = p["input"]["weight"], p["output"]["weight"]
    y, f = (a.astype(widened(w[:0]).real.dtype)[:, None] for a in (np.log(counts), importance(counts, c)))
    error = recomputed(ops.glove) if recompute else ops.glove
    value, error_back = error(w, v, p["input"]["bias"], p["output"]["bias"], centers, contexts, y, f)

    def back(dvalue=1.0):
        dw, dv, da, db, *_ = error_back(dvalue)
        return {"input": {"weight": dw, "bias": da}, "output": {"weight": dv, "bias": db}}

    return value, back


def importance(counts, c):
    """The weights f(x) = min(1, (x / x_max)^α) of counts [N] -> [N]   (equation 9)."""
    return np.minimum(1, counts / c.x_max) ** c.alpha


def vectors(p) -> np.ndarray:
    """The word vectors [V D]: the sum of both matrices, which differ only by chance (section 4.2)."""
    return p["input"]["weight"] + p["output"]["weight"]


# Training data

def cooccurrences(tokens: Tokens, c: GloveConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centers[N], contexts[N], counts[N]): the pairs of words within a window, sorted, as int64 and float64.

    Two words d positions apart count 1/d, once with each as the center, so the counts are symmetric.  Windows do not
    cross documents.  Raises UserError if there are no pairs.
    """
    ids, document = laid_out(tokens, c)
    pairs, counts = [], []
    for d in range(1, min(c.window, len(ids) - 1) + 1):
        near = document[d:] == document[:-d]
        a, b = ids[:-d][near], ids[d:][near]
        pair, count = np.unique(np.concatenate([a * c.vocab_size + b, b * c.vocab_size + a]), return_counts=True)
        pairs.append(pair)
        counts.append(count / d)
    pair, which = np.unique(np.concatenate(pairs), return_inverse=True)
    if not pair.size:
        raise UserError("no document has two tokens, so there are no pairs; give longer documents")
    return *np.divmod(pair, c.vocab_size), np.bincount(which, np.concatenate(counts))


def batches(tokens: Tokens, c: GloveConfig, batch_size: int, seed: int) -> Callable[[int], tuple[np.ndarray, ...]]:
    """batch(step) -> (centers, contexts, counts), batch_size of the pairs; an epoch visits each once."""
    pairs = cooccurrences(tokens, c)

    def batch(step):
        _, indices = visit(len(pairs[0]), batch_size, seed, step)
        return tuple(a[indices] for a in pairs)

    return batch
