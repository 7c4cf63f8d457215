"""The keys and values of the places so far, so that a text grows by one token at the cost of one."""
import numpy as np


class Cache:
    """One layer's keys and values of the places so far, in buffers that double when they are full."""

    def __init__(self, batch: int, groups: int, width: int, like, room: int = 64):
        self.length = 0                                         # S, the places held
        self._k, self._v = (np.empty_like(like, shape=(batch, groups, room, width)) for _ in "kv")

    def extend(self, k, v):
        """Append the keys and values [B G T K] of T places; returns those of all places [B G S K], as views."""
        start, self.length = self.length, self.length + k.shape[2]
        while self.length > self._k.shape[2]:
            self._k, self._v = (np.concatenate([a, np.empty_like(a)], axis=2) for a in (self._k, self._v))
        self._k[:, :, start:self.length], self._v[:, :, start:self.length] = k, v
        return self._k[:, :, :self.length], self._v[:, :, :self.length]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch."""
        self._k, self._v = self._k[rows], self._v[rows]


def new_cache(config, batch: int, like, room: int = 64) -> list[Cache]:
    """An empty Cache for each layer, of the precision and on the device of the array `like`, with room for so many
    places before a buffer has to grow."""
    return [Cache(batch, config.groups, config.head_width, like, room) for _ in range(config.num_hidden_layers)]
