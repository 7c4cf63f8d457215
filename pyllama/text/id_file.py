"""Token ids in a file, read where they are needed.

The file is not mapped into memory.  The kernel kills a process that reads a mapped page which the file no longer has,
and Python code cannot prevent it.  A read that comes back short is an error like any other.
"""
import itertools
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pyllama.errors import UserError

BLOCK = 2**22                                       # ids in a block of blocks_of()


class IdFile:
    """An array [N] of token ids in a file: len(ids), ids.dtype, and ids[positions] for an integer array of any shape.

    The file stays open, so its name may change or vanish.  Threads and forked processes may read at the same time.
    Raises OSError if the file cannot be opened, ValueError if it is empty or ends within an id.
    """

    def __init__(self, path: str | Path, dtype, offset: int = 0):
        self.path, self.dtype, self.offset = Path(path), np.dtype(dtype), offset
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._count, rest = divmod(os.fstat(self._handle).st_size - offset, self.dtype.itemsize)
        if rest or self._count < 1:
            raise ValueError(f"{path} has no whole number of ids")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The ids at these positions, which must be from 0 to N - 1.  Raises UserError if the file became shorter."""
        flat = positions.reshape(-1)
        if not flat.size:
            return np.empty(positions.shape, self.dtype)
        first, end = int(flat.min()), int(flat.max()) + 1
        if end - first <= 4 * flat.size:                    # close together: one read
            return self.read(first, end)[positions - first]
        borders = [0, *(np.flatnonzero(np.diff(flat) != 1) + 1).tolist(), flat.size]        # of consecutive positions
        ids = np.empty(flat.size, self.dtype)
        for begin, end in itertools.pairwise(borders):
            ids[begin:end] = self.read(int(flat[begin]), int(flat[begin]) + end - begin)
        return ids.reshape(positions.shape)

    def read(self, begin: int, end: int) -> np.ndarray:
        """The ids at positions begin to end - 1.  Raises UserError if the file became shorter or cannot be read."""
        ids = np.empty(end - begin, self.dtype)
        rest, place = ids.view(np.uint8).data, self.offset + begin * self.dtype.itemsize
        while rest:
            try:
                count = os.preadv(self._handle, [rest], place)
            except OSError as error:
                raise UserError(f"cannot read {self.path}: {error.strerror}; saved checkpoints are intact: fix that "
                                f"and resume") from None
            if not count:
                raise UserError(f"{self.path} became shorter while it was in use; saved checkpoints are intact: "
                                f"restore the file and resume")
            rest, place = rest[count:], place + count
        return ids


def blocks_of(ids: np.ndarray | IdFile) -> Iterator[np.ndarray]:
    """Yield the ids in order, as arrays of limited size."""
    for begin in range(0, len(ids), BLOCK):
        end = min(begin + BLOCK, len(ids))
        yield ids.read(begin, end) if isinstance(ids, IdFile) else ids[begin:end]
