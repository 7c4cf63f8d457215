"""The cache of keys and values, so that generating a token costs one forward pass of that token alone."""
import numpy as np


class Cache:
    """One layer's keys and values of the positions so far, in buffers that double when they are full.

    batch     B, sequences
    groups    G, key/value heads
    width     K, the head width
    like      an array whose dtype and device the buffers have
    room      positions before a buffer has to grow
    """

    def __init__(self, batch: int, groups: int, width: int, like, room: int = 64):
        self.length = 0                                         # S, the number of cached positions
        self._k, self._v = (np.empty_like(like, shape=(batch, groups, room, width)) for _ in "kv")

    def extend(self, k, v):
        """Append the keys and values [B G T K] of T positions; returns those of all positions [B G S K], as views."""
        start, self.length = self.length, self.length + k.shape[2]
        while self.length > self._k.shape[2]:
            self._k, self._v = (np.concatenate([a, np.empty_like(a)], axis=2) for a in (self._k, self._v))
        self._k[:, :, start:self.length], self._v[:, :, start:self.length] = k, v
        return self.contents()

    def contents(self):
        """The keys and values [B G S K] of all positions, as views."""
        return self._k[:, :, :self.length], self._v[:, :, :self.length]

    def keep(self, rows: list[int]) -> None:
        """Keep these rows of the batch, in this order."""
        self._k, self._v = self._k[rows], self._v[rows]

    def cut(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.length = length


def new_cache(config, batch: int, like, room: int = 64) -> list[Cache]:
    """An empty Cache for each layer; arguments as in Cache."""
    return [Cache(batch, config.groups_of(layer), config.head_width, like, room)
            for layer in range(config.num_hidden_layers)]
