"""Examples of different lengths as batches: what a step learns from, for train.train."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyllama.text.epochs import step_rows
from pyllama.text.tokens import Batch

IGNORE = -100
FILL = {"ids": 0, "labels": IGNORE, "types": 0}             # what stands at padding, on the right


@dataclass(frozen=True)
class Examples:
    """Rows of arrays, a dict each: ids [T], and what else a model's loss takes by name.

    labels may be a number, places that count, or as long as the target; a batch pads them with what does not count.
    weights, a number each, let rows count for more or less.
    """
    rows: Sequence[dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, settings, step: int) -> Batch:
        """The examples of a step: each epoch has all of them once, in an order that depends on (seed, epoch) alone."""
        chosen, _ = step_rows(len(self.rows), settings.rows_per_step, settings.seed, step)
        return collate([self.rows[i] for i in chosen])

    def in_turn(self, size: int):
        """(where they begin, Batch) of up to `size` examples, in order."""
        for first in range(0, len(self.rows), size):
            yield first, collate(self.rows[first:first + size])


def collate(rows: Sequence[dict[str, np.ndarray]]) -> Batch:
    """The rows as arrays [B ...], with a mask [B T] that is 0 at padding."""
    inputs = {}
    for name in rows[0]:
        arrays = [np.asarray(row[name]) for row in rows]
        longest = max((a.shape[0] for a in arrays if a.ndim), default=None)
        if longest is None:
            inputs[name] = np.stack(arrays)
        else:
            inputs[name] = np.stack([np.pad(a, (0, longest - len(a)), constant_values=FILL[name]) for a in arrays])
    inputs["mask"] = np.arange(inputs["ids"].shape[1]) < np.array([[len(row["ids"])] for row in rows])
    labels = inputs.get("labels")
    weights = inputs.get("weights")
    if weights is not None:
        return Batch(inputs, float(weights.sum()))
    return Batch(inputs, len(rows) if labels is None or labels.ndim == 1 else int(np.sum(labels != IGNORE)))
