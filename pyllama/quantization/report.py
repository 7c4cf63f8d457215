"""What quantization changes: the error of every matrix and of its products, bytes before and after."""
import math
from typing import Any, NamedTuple

import numpy as np

from pyllama import machine, params
from pyllama.quantization.encoded import EncodedArray
from pyllama.quantization.moments import product
from pyllama.quantization.passes import Rows, side_by_side


class Change(NamedTuple):
    """A matrix before and after.

    Of weights W, stored as V, and inputs X in the model, Y in the quantized one:
    """
    name: str
    kind: str
    weights: float                              # ‖W - V‖/‖W‖
    outputs: float | None                       # ‖XW - XV‖/‖XW‖; None: it is not multiplied with, or there is no text
    inside: float | None                        # ‖XW - YV‖/‖XW‖
    before: int                                 # bytes as float32
    after: int

    def __str__(self):
        errors = (self.weights, self.outputs, self.inside)
        shares = "".join(f"{'-' if error is None else f'{100 * error:.3g}%':>8}" for error in errors)
        sizes = kilobytes(self.before) + kilobytes(self.after)
        return f"{self.name.removesuffix('.weight'):<31} {self.kind:<4}{shares}{sizes}"


@machine.one_blas_thread()
def changes(p: dict, tree: dict, c: Any, rows: Rows | None = None) -> list[Change]:
    """The changes of a model's matrices, in the order of the tree.

    p, c    plain parameters and the configuration
    tree    the same parameters with EncodedArray leaves
    rows    a text on which the products are compared: see passes.py; None: they are not

    >>> import numpy as np, pyllama
    >>> from pyllama.quantization import encoded_tree
    >>> from pyllama.quantization.report import changes
    >>> model = pyllama.create("llama", "python-docs", hidden_size=32, num_hidden_layers=1)
    >>> first, *_ = changes(model.params, encoded_tree(model.params, "q8_0", model.config), model.config)
    >>> first.name, first.before / first.after > 3.7, first.weights < 0.01
    ('model.embed_tokens.weight', True, True)
    """
    p = params.rebuild(p, (np.array(leaf, np.float32) for _, leaf in params.leaves(p)))     # each with its own memory
    of_name, outputs = dict(params.leaves(p)), dict[str, tuple[float | None, float | None]]()
    stored = {name: leaf for name, leaf in params.leaves(tree) if isinstance(leaf, EncodedArray)}

    def other(name, w, x, y):
        matrix = stored[name]
        v = (matrix.T if name.endswith(c.TRANSPOSED) else matrix).decoded()
        if x is not None:
            outputs[name] = errors_of_products(w, v, x, y)
        return v

    if rows is not None:
        side_by_side(p, c, rows, other)
    errors = {name: relative(of_name[name] - leaf.decoded(), of_name[name]) for name, leaf in stored.items()}
    return [Change(name, leaf.kind, errors[name], *outputs.get(name, (None, None)), of_name[name].nbytes, leaf.nbytes)
            for name, leaf in stored.items()]


def relative(difference: np.ndarray, x: np.ndarray) -> float:
    """‖difference‖/‖x‖; 0 of zeros."""
    size = float(np.square(x, dtype=np.float64).sum())
    return math.sqrt(float(np.square(difference, dtype=np.float64).sum()) / size) if size else 0.0


def errors_of_products(w: np.ndarray, v: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(‖xw - xv‖/‖xw‖, ‖xw - yv‖/‖xw‖) for w, v [E D] and x, y [N D], from the second moments of x and y."""
    xx, xy, yy = product(x, x), product(x, y), product(y, y)

    def form(a, moments, b):
        return float(((a.astype(np.float64) @ moments) * b).sum())

    whole = form(w, xx, w)
    alone, inside = form(w - v, xx, w - v), whole - 2 * form(w, xy, v) + form(v, yy, v)
    if not whole:
        return 0.0, 0.0
    return math.sqrt(max(0.0, alone) / whole), math.sqrt(max(0.0, inside) / whole)


def lines(changed: list[Change]) -> list[str]:
    """The report as lines of 80 columns, if no name is long: a heading, the matrices, the sums of their bytes."""
    heading = f"{'matrix':<31} {'as':<4}{'weights':>8}{'outputs':>8}{'inside':>8}{'kB':>10}{'kB then':>10}"
    before, after = (kilobytes(sum(getattr(change, name) for change in changed)) for name in ("before", "after"))
    return [heading, *map(str, changed), f"{'all matrices':<60}{before}{after}"]


def kilobytes(size: int) -> str:
    """Bytes as thousands of them, in ten columns."""
    return f"{size / 1000:>10,.1f}"
