"""Sparse updates: of a table that is only looked up, a step updates the rows that it has looked up.

    tables = Tables(p, vocab_size)
    with tables.recording(p):           # which rows do the ops within look up?
        loss, back = model.loss(...)
    tables.of_name["model.embed_tokens.weight"].touched

A row is touched by a step that looks it up.  The rule: what happens to a row is what the dense rule would do to it if
the steps that touch it were the only ones.

(a) Its step number t counts the steps that have touched it, and corrects the bias of its means.
(b) In other steps nothing happens: neither it nor its means decay, and no mean moves it.
(c) The learning rate is that of the step, as for everything else.

So a rare row decays once for each gradient that it gets, as a frequent one does.  If every step touches every row, this
is the dense rule.  A table that another op reads, too, as one that is tied to the output, is touched as a whole.

PyTorch's SparseAdam and TensorFlow's LazyAdam have (b), too, but they count all steps in (a): a row that is first
touched late then moves by up to (1 - β₁)/√(1 - β₂) times the learning rate, 3.2 times for β₂ = 0.999.
"""
import contextlib
from collections.abc import Iterator

import numpy as np

from pyllama import params
from pyllama.op import watching

# op -> {the place of a table among its inputs: the places of the ids of the rows that it reads}
LOOKUPS = {"embedding": {1: (0,)}, "negative_sampling": {1: (2, 3)},
           "glove": {0: (4,), 1: (5,), 2: (4,), 3: (5,)}}


class Table:
    """A parameter [V ...] whose rows may be looked up.

    count       int64 [V]: the number of steps that have touched each row
    touched     int64 [n]: the rows that the last step has touched, in order
    """

    def __init__(self, size: int):
        self.count = np.zeros(size, np.int64)
        self.touched = np.arange(size)
        self.mark = np.zeros(size, bool)
        self.looked_up = False

    @property
    def whole(self) -> bool:
        """Has the last step touched every row?"""
        return len(self.touched) == len(self.count)

    def note(self, ids) -> None:
        """Mark rows that are looked up."""
        self.mark[ids] = True
        self.looked_up = True

    def close(self) -> None:
        """Make the marked rows the touched ones: all rows if none was looked up, because the use is then unknown."""
        self.touched = np.flatnonzero(self.mark) if self.looked_up else np.arange(len(self.count))
        self.mark.fill(False)
        self.looked_up = False

    def counted(self):
        """Count this step: the number of steps of each touched row, a column [n 1], or one number if they are equal."""
        self.count[self.touched] += 1
        t = self.count[self.touched]
        return t[:, None] if len(t) and t.min() < t.max() else int(t.max(initial=1))

    def take(self, x):
        """The touched rows [n D] of the table's part x [V*D] of a vector: a copy, unless it is the whole table."""
        rows = x.reshape(len(self.count), -1)
        return rows if self.whole else rows[self.touched]

    def put(self, x, rows) -> None:
        """Write back what take() gave."""
        if not self.whole:
            table = x.reshape(len(self.count), -1)
            table[self.touched] = rows.reshape(len(self.touched), table.shape[1])


class Tables:
    """The parameters of p with `size` rows: those that may be tables.

    of_name     {name: Table}
    """

    def __init__(self, p, size: int):
        self.size = size
        self.of_name = {name: Table(size) for name, leaf in params.leaves(p) if leaf.shape[:1] == (size,)}

    @contextlib.contextmanager
    def recording(self, p) -> Iterator[None]:
        """Find the rows of the leaves of p, which may be rounded ones, that ops look up within this context."""
        tables = {address(leaf): self.of_name[name] for name, leaf in params.leaves(p) if name in self.of_name}

        def watch(op, call, inputs, options):
            result = call(*inputs, **options)               # first: it refuses ids that no row has
            lookups = LOOKUPS.get(op.name, {})
            for i, x in enumerate(inputs):
                if isinstance(x, np.ndarray) and self.size in x.shape and (table := tables.get(address(x))):
                    for ids in lookups.get(i, ()):
                        table.note(inputs[ids])
                    if i not in lookups:
                        table.note(slice(None))
            return result

        try:
            with watching(watch):
                yield
        finally:                                            # of an interrupted step, too: the next one starts anew
            for table in self.of_name.values():
                table.close()

    def touch_by(self, grads) -> None:
        """Make the rows that have a gradient the touched ones, where a step has not been recorded."""
        for name, leaf in params.leaves(grads):
            if name in self.of_name:
                self.of_name[name].note(np.flatnonzero(leaf.reshape(len(leaf), -1).any(axis=1)))
                self.of_name[name].close()

    def state(self) -> dict[str, np.ndarray]:
        """{"count.NAME": int64 [V]}; no copies."""
        return {f"count.{name}": table.count for name, table in self.of_name.items()}


def address(x: np.ndarray) -> int:
    """Where an array begins in memory: a leaf and its transpose begin at the same place."""
    return x.__array_interface__["data"][0]
