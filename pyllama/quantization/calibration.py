"""A model quantized with the help of a text: every matrix is rounded for the inputs that it really gets.

Matrices are rounded in the order in which the model computes, each with the inputs that the rounded ones below give.
passes.side_by_side() runs the text by the model and by what has been rounded of it: when it comes to a matrix w, the
input is x in the model, and y in the other one.

Drift.  The row v that takes the place of w multiplies y, but shall give what w gives for x.  With damping λ (see
moments.py), v minimizes

    E[(w·x - v·y)²] + λ|w - v|² = (v - u) H (v - u)ᵀ + a constant,      H = E[y yᵀ] + λI
    u = w (E[x yᵀ] + λI) H⁻¹ = w + w E[(x - y) yᵀ] H⁻¹

so that rounding.py rounds u instead of w: the matrix makes up for errors of those below (Li et al., "GPTAQ", 2025).

Embeddings.  A table has no inputs, but its rows have gradients: if row v changes by δ, the loss of the text changes by
about ½ Σ δ g gᵀ δᵀ over the places of token v, where g is the gradient there (the Fisher information).  If the table is
also the output matrix, row v gives the logit of token v from the last vector x, which adds ½ Σ p(1 - p) δ x xᵀ δᵀ over
all places, with the probability p of the token.  A model that fits its text gives token v a sum of p that is its count
n, so that both together are about

    ½ n δ H δᵀ,      H = E[g gᵀ] + κ E[x xᵀ],      κ = E[1 - p of the token that follows]

The count does not matter, because rows are rounded independently.

Axes: E outputs, D inputs, N places that count.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllama import machine, params
from pyllama.op import watching
from pyllama.quantization.blocks import LEVELS
from pyllama.quantization.encoded import EncodedArray, encoded, fitting, is_encodable
from pyllama.quantization.moments import Moments, product
from pyllama.quantization.passes import Rows, counted, naming, run, side_by_side
from pyllama.quantization.rounding import rounded

AT_ONCE = 2**18                 # numbers in a layer's input while gradients are computed
LOGITS = 2**24                  # numbers that show how sure the model is


@dataclass(frozen=True)
class Method:
    """What of the method is used; switched off to see what each part is worth."""
    search: bool = True                         # of the scale of a block
    order: bool = True                          # of the columns, large inputs first
    drift: bool = True                          # make up for the errors of the matrices below
    tables: bool = True                         # embeddings by the gradients of a text; False: to the nearest


Progress = Callable[[int, int], object]


def ignored(done: int, total: int) -> None:
    """No progress display."""


@machine.one_blas_thread()
def calibrated_tree(p: dict, c: Any, kind: str, rows: Rows, method: Method = Method(),
                    progress: Progress = ignored) -> dict:
    """The tree of a model's parameters in a storage format, as encoded_tree() gives it, but rounded for a text.

    p, c        plain parameters and the configuration of a decoder, or of an encoder without a head
    kind        "q8_0" or "q4_0"; in f16 and bf16 all numbers are rounded to the nearest
    progress    called as progress(done, total), in matrices

    Matrices that the text does not reach are rounded to the nearest.  Raises UserError if a number is not finite or too
    large.

    >>> import numpy as np, pyllama
    >>> from pyllama.quantization.calibration import calibrated_tree
    >>> from pyllama.quantization.passes import of_text
    >>> model = pyllama.create("llama", "python-docs", hidden_size=32, num_hidden_layers=1)
    >>> ids = np.arange(40).reshape(2, 20)
    >>> tree = calibrated_tree(model.params, model.config, "q4_0", of_text(ids, ids))
    >>> tree["model"]["layers"][0]["mlp"]["up_proj"]["weight"]
    EncodedArray(96 x 32, q4_0)
    """
    p = params.rebuild(p, (np.array(leaf, np.float32) for _, leaf in params.leaves(p)))     # each with its own memory
    names = [name for name, leaf in params.leaves(p) if is_encodable(name, leaf)]
    if kind not in LEVELS:
        return params.rebuild(p, (encoded(name, leaf, kind, c) if name in names else leaf
                                  for name, leaf in params.leaves(p)))
    rounding = Rounding(kind, method, table_moments(p, c, rows) if method.tables and "labels" in rows.inputs else {},
                        lambda done: progress(done, len(names)))
    side_by_side(p, c, rows, rounding)

    def stored(name, leaf):
        matrix = rounding.done.get(name)
        if matrix is None:
            return encoded(name, leaf, kind, c)
        return matrix.T if name.endswith(c.TRANSPOSED) else matrix

    return params.rebuild(p, (stored(name, leaf) if name in names else leaf for name, leaf in params.leaves(p)))


class Rounding:
    """Rounds each matrix when the model comes to it: see side_by_side()."""

    def __init__(self, kind: str, method: Method, tables: dict[str, np.ndarray], progress: Callable[[int], object]):
        self.kind, self.method, self.tables, self.progress = kind, method, tables, progress
        self.done: dict[str, EncodedArray] = {}
        self.inputs: Any = None                 # those of the last matrix, which may be the next one's, too

    def __call__(self, name: str, w: np.ndarray, x: np.ndarray | None, y: np.ndarray | None) -> np.ndarray:
        if name not in self.done:
            self.done[name] = self.rounded(name, w, x, y)
            self.progress(len(self.done))
        return self.done[name].decoded()

    def rounded(self, name: str, w: np.ndarray, x: np.ndarray | None, y: np.ndarray | None) -> EncodedArray:
        """A matrix or table w [E D], with the inputs x and y [N D] of both halves."""
        kind = fitting(self.kind, w.shape[1])
        h, drift = self.moments(x, y) if x is not None else (self.tables.get(name), None)
        goal = w if drift is None else w + w @ drift
        if kind not in LEVELS or h is None:
            return EncodedArray.of(goal, kind)
        return EncodedArray(kind, rounded(goal, h, kind, self.method.search, self.method.order), w.shape)

    def moments(self, x, y) -> tuple[np.ndarray, np.ndarray | None]:
        """(H [D D], E[(x - y) yᵀ] H⁻¹)"""
        if self.inputs is None or self.inputs[0] is not x:
            moments = Moments(y.shape[1])
            moments.add(y)
            h = moments.estimate()
            drift = np.linalg.solve(h, product(y, x - y) / max(1, len(y))).T if self.method.drift else None
            self.inputs = x, h, drift
        return self.inputs[1:]


def table_moments(p: dict, c: Any, rows: Rows) -> dict[str, np.ndarray]:
    """{name: H [D D]} of the tables of embeddings, from the gradients of the loss of the text."""
    name_of, parts = naming(p), dict[str, tuple[Moments, Moments]]()
    here = np.zeros(0, bool)

    def watch(op, call, inputs, options):
        result, back = call(*inputs, **options)
        name = name_of(op, inputs)
        if op.name == "embedding" and name:
            width = inputs[1].shape[1]
            gradients, _ = parts.setdefault(name, (Moments(width), Moments(width)))

            def watched_back(dy):
                gradients.add(counted(dy, here))
                return back(dy)

            return result, watched_back
        if name in parts:                       # the table is the output matrix, too
            parts[name][1].add(counted(inputs[0], here))
        return result, back

    B, T = rows.counted.shape
    at_once = max(1, AT_ONCE // (T * c.hidden_size))
    with watching(watch):
        for begin in range(0, B, at_once):
            few = slice(begin, begin + at_once)
            here = rows.counted[few]
            _, back = run(p, c, {name: a[few] for name, a in rows.inputs.items()}, recompute=False)
            back()
    kappa = uncertainty(p, c, rows)
    return {name: gradients.estimate() + (kappa * heads.estimate() if heads.count else 0)
            for name, (gradients, heads) in parts.items()}


def uncertainty(p: dict, c: Any, rows: Rows) -> float:
    """The mean of 1 - p of the token that follows, on a few rows."""
    few = max(1, LOGITS // (rows.counted.shape[1] * c.vocab_size))
    ids, places = rows.inputs["ids"][:few], rows.counted[:few]
    z, _ = c.model.logits(ids[:, :-1], p, c, recompute=True)
    z, following = z[places], ids[:, 1:][places]
    odds = np.exp(z - z.max(axis=-1, keepdims=True))
    return float(np.mean(1 - odds[np.arange(len(z)), following] / odds.sum(axis=-1)))
