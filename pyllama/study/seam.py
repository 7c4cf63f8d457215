"""A model as a function of the vectors of its tokens, instead of their ids."""
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.op import watching
from pyllama.tasks.task import Trained


class Seam:
    """Where a model looks up the embeddings of its tokens: `points` [N T D] are read instead, if there are any.

    ids         [N T], the very array that the model is given
    shifts      does a decoder read the same text, shifted by one?
    table       [V D] the embeddings, once they were looked up
    gradient    [N T D] of the points, after the backward pass
    """

    def __init__(self, ids: np.ndarray, points: np.ndarray | None = None, shifts: bool = False):
        self.ids, self.points, self.shifts = ids, points, shifts
        self.table: Any = None
        self.gradient = None if points is None else np.zeros_like(points)

    def watch(self, op, call, inputs, options):
        """Watch a call of an op: see op.watching()."""
        y, back = call(*inputs, **options)
        if op.name != "embedding":
            return y, back
        ids, table = inputs
        if ids is self.ids:
            self.table = table
        if table is not self.table or self.points is None:
            return y, back
        places = copied(ids, self.ids, self.shifts)
        kept = places >= 0
        y[:, kept] = self.points[:, places[kept]]

        def back_to_points(dy):
            self.gradient[:, places[kept]] += dy[:, kept]
            return None, np.zeros_like(table)               # of the table nothing is asked

        return y, back_to_points


def copied(read: np.ndarray, ids: np.ndarray, shifts: bool) -> np.ndarray:
    """The place in ids [N T] that each id of `read` [N T'] comes from: its own, the one before it in a decoder's input,
    or -1.

    >>> import numpy as np
    >>> from pyllama.study.seam import copied
    >>> ids = np.array([[5, 6, 7]])
    >>> copied(ids, ids, True), copied(np.array([[2, 5, 6]]), ids, True)
    (array([0, 1, 2]), array([-1,  0,  1]))
    """
    places = np.arange(read.shape[1])
    if read is ids:
        return places
    return places - 1 if shifts else np.full_like(places, -1)


def run(inputs: dict[str, np.ndarray], trained: Trained,
        points: np.ndarray | None = None) -> tuple[np.ndarray, Seam, Callable]:
    """(the model's scores z [N ...] of a text at N points [N T D], the Seam, back(dz)); without points, N is 1.

    inputs: {ids [T]} and what else the model's logits() takes, each without the axis N
    """
    count = 1 if points is None else len(points)
    batch = {name: np.repeat(array[None], count, axis=0) for name, array in inputs.items()}
    seam = Seam(batch["ids"], points, shifts="labels" not in batch)
    with watching(seam.watch):
        z, back = trained.config.model.logits(p=trained.params, c=trained.config, **batch)
    return z, seam, back
