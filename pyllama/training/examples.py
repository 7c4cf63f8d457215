"""Batches of examples of different lengths, for loop.train()."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyllama.text.epochs import step_rows
from pyllama.text.tokens import Batch
from pyllama.training.stopping import unless_stopped

IGNORE = -100
FILL = {"ids": 0, "labels": IGNORE, "types": 0, "teacher_scores": 0}        # value of padding, on the right


@dataclass(frozen=True)
class Examples:
    """Rows of arrays: each row is a dict with ids [T] and the other arrays that a model's loss takes.

    labels    0-d, or [T'] of any length; a batch pads them with IGNORE
    weights   0-d, optional: the weight of the row in the loss
    """
    rows: Sequence[dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, settings, step: int) -> Batch:
        """The examples of a step.  An epoch visits each of them once, in an order that depends on (seed, epoch)."""
        chosen, _ = step_rows(len(self.rows), settings.rows_per_step, settings.seed, step)
        return collate([self.rows[i] for i in chosen])

    def in_turn(self, size: int):
        """Yield (number of the first example, Batch of up to `size` examples), in order.

        Raises Stopped if the context is stopping().
        """
        for first in unless_stopped(range(0, len(self.rows), size)):
            yield first, collate(self.rows[first:first + size])


def collate(rows: Sequence[dict[str, np.ndarray]]) -> Batch:
    """Stack rows into arrays [B ...], padded to the longest, with a bool mask [B T] that is False at padding."""
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
