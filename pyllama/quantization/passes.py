"""Passes of a model that show the inputs of each of its matrices: by itself, and beside another model.

They go through the ops' watchers (see op.watching), so that no model knows of them.

Axes: B batch, T time, E outputs, D inputs, N places that count.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyllama import params
from pyllama.op import watching
from pyllama.quantization.encoded import is_encodable

OPS = ("embedding", "linear", "linear_cross_entropy")       # those whose second input is a matrix


class Rows(NamedTuple):
    """The text to calibrate with, as a batch."""
    inputs: dict[str, np.ndarray]               # of the model's loss, or of an encoder: arrays [B ...] by name
    counted: np.ndarray                         # bool [B T]: the places that are not padding


def of_text(ids: np.ndarray, labels: np.ndarray) -> Rows:
    """Rows for a model that predicts the next token: ids, labels [B T+1], -100 at padding."""
    return Rows({"ids": ids, "labels": labels}, labels[:, 1:] != -100)


def of_encoder(ids: np.ndarray, mask: np.ndarray) -> Rows:
    """Rows for an encoder without a head: ids, mask [B T], 0 at padding."""
    return Rows({"ids": ids, "mask": mask}, mask != 0)


def run(p: dict, c: Any, inputs: dict[str, np.ndarray], recompute: bool):
    """A pass of the model: (loss, back), of an encoder (its vectors, back)."""
    if "labels" in inputs:
        return c.model.loss(**inputs, p=p, c=c, count=1, recompute=recompute)
    return c.model.hidden(inputs["ids"], p[c.ROOT], c, mask=inputs["mask"], recompute=recompute)


def naming(p: dict) -> Callable[[Any, tuple], str | None]:
    """A function that gives the name of the matrix or table of an op's call; None if the op has none.

    The op gets the leaf itself, or its transpose, which is a view of it.
    """
    names = {(id(leaf), leaf.size): name for name, leaf in params.leaves(p) if is_encodable(name, leaf)}

    def name_of(op, inputs):
        if op.name not in OPS:
            return None
        w = inputs[1]
        return names.get((id(w), w.size)) or names.get((id(w.base), w.size))

    return name_of


def side_by_side(p: dict, c: Any, rows: Rows, replacement: Callable) -> None:
    """Run the rows by the model, and beside them by another one, which has other matrices.

    replacement(name, w, x, y) returns the other's [E D] in place of w [E D], whose inputs are x [N D] in the model and
    y [N D] in the other one; of a table of embeddings x and y are None.  It is called in the order of the computation.
    It may return None for a product that the other model lacks, with its bias: zeros then take its place.
    The leaves of p must own their memory.
    """
    name_of = naming(p)
    last: Any = None                            # the input of the last product, which may be the next one's, too

    def watch(op, call, inputs, options):
        nonlocal last
        name = name_of(op, inputs)
        if name is None:
            return call(*inputs, **options)
        x, w, *others = inputs
        half = len(x) // 2
        if op.name == "embedding":
            other = replacement(name, w, None, None)
            return np.concatenate([call(x[:half], w)[0], call(x[half:], other)[0]]), None
        if last is None or last[0] is not x:
            last = x, *(counted(part, rows.counted) for part in (x[:half], x[half:]))
        other = replacement(name, w, *last[1:])
        if op.name != "linear":
            return np.float32(0), None          # the loss is not used
        ours = call(x[:half], w, *others)[0]
        theirs = np.zeros_like(ours) if other is None else call(x[half:], other, *others)[0]
        return np.concatenate([ours, theirs]), None

    with watching(watch):
        run(p, c, {name: np.concatenate([a, a]) for name, a in rows.inputs.items()}, recompute=True)


def counted(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The vectors of the places [B T] that count: x [B T D] or [B*T D] -> [N D]; all of another x, such as [B D]."""
    flat = x.reshape(-1, x.shape[-1])
    return flat[places.ravel()] if len(flat) == places.size else flat
