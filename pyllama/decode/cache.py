"""The keys and values of all layers, in one precision, in half of it, or in a byte a number."""
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyllama import backend

LEAST = np.finfo(np.float32).tiny           # a scale of int8
KINDS = {"reals": None, "f16": np.float16, "int8": np.int8}         # how a key or value is kept; None: as computed


class KeysValues:
    """The cache of a plan: for each layer, keys and values [B G room K].

    groups  G of each layer
    kind    "reals": in the precision of the plan; with float32 also "f16", or "int8" with a scale for each position and
            head
    """

    def __init__(self, groups: Sequence[int], batch: int, width: int, dtype: Any, kind: str, room: int):
        if kind not in KINDS or (kind != "reals" and dtype != np.float32):
            raise ValueError(f"a cache of {kind!r} for {np.dtype(dtype)}; choose reals, or f16 or int8 for float32")
        self.kind, self.dtype, self.room = kind, np.dtype(dtype), max(room, 1)
        self.layers = [tuple(self._new((batch, each, self.room, width))) for each in groups]

    def _new(self, shape: tuple[int, ...]):
        """k, v and their scales."""
        kept = KINDS[self.kind] or self.dtype
        scales = [np.empty(shape[:3], np.float32) if self.kind == "int8" else None for _ in "kv"]
        return [np.empty(shape, kept), np.empty(shape, kept), *scales]

    @property
    def code(self) -> int:
        """The kind, for the kernels."""
        return backend.cpu.codes[self.kind]

    @property
    def nbytes(self) -> int:
        """The memory of all layers."""
        return sum(a.nbytes for layer in self.layers for a in layer if a is not None)

    def each(self, change) -> None:
        """Replace every array by change(array)."""
        self.layers = [tuple(None if a is None else change(a) for a in layer) for layer in self.layers]

    def grow(self, room: int) -> None:
        """Make room for so many positions, at least twice as many as before."""
        more = max(room, 2 * self.room) - self.room
        self.each(lambda a: np.concatenate([a, np.empty_like(a, shape=(*a.shape[:2], more, *a.shape[3:]))], axis=2))
        self.room += more

    def keep(self, rows: list[int], length: int) -> None:
        """Make the old sequence rows[i] the new sequence i; only the first `length` positions are copied."""
        def chosen(a):
            kept = np.empty_like(a, shape=(len(rows), *a.shape[1:]))
            for new, old in enumerate(rows):
                kept[new, :, :length] = a[old, :, :length]
            return kept

        self.each(chosen)

    def state(self, row: int, length: int) -> dict[str, np.ndarray]:
        """A copy of the numbers of one sequence: "layers.I.k" and "layers.I.v" [G length K] of each layer."""
        kept = {}
        for i, (k, v, k_scale, v_scale) in enumerate(self.layers):
            for name, a, scale in (("k", k, k_scale), ("v", v, v_scale)):
                numbers = a[row, :, :length].astype(self.dtype)
                kept[f"layers.{i}.{name}"] = numbers if scale is None else numbers * scale[row, :, :length, None]
        return kept

    def restore(self, row: int, state: dict[str, np.ndarray], length: int) -> None:
        """The inverse of state()."""
        for i, (k, v, k_scale, v_scale) in enumerate(self.layers):
            for name, a, scale in (("k", k, k_scale), ("v", v, v_scale)):
                numbers = state[f"layers.{i}.{name}"]
                if scale is not None:
                    ideal = np.abs(numbers).max(axis=-1, keepdims=True) / 127
                    unit = np.where(np.isfinite(ideal), np.maximum(ideal, LEAST), np.nan)
                    scale[row, :, :length] = unit[..., 0]
                    numbers = np.where(np.isfinite(unit), np.rint(numbers / unit), 0)
                a[row, :, :length] = numbers
