"""Sequences that grow, through a plan: the Session of generation/session.py without a Python call for each op."""
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyllama.decode.cache import KeysValues
from pyllama.decode.compiled import compiled
from pyllama.decode.families import plan_of
from pyllama.decode.plan import dtype_of
from pyllama.errors import UserError
from pyllama.models.transformer_layers import keys_values
from pyllama.quantization import decoded_tree

Tokens = Sequence[Sequence[int]]


class PlannedSession:
    """B sequences of tokens, each with its own length: see generation.session.Session.

    params, config    the tree of parameters, float32 or float64, possibly with EncodedArrays, and the configuration of
                      a family that has a plan
    batch             B
    room              tokens of a sequence before the cache has to grow
    memory            (x [B S D], mask [B S]) of an encoder-decoder: the encoded sources, and 0 at padding
    cache             how keys and values are kept: see cache.KeysValues

    The bits of a token's scores do not depend on the number of threads; nor on the other tokens of a call, of this
    sequence or another, if a call has at most 16.

    Source: Blumofe and Leiserson, 1999 (an idle thread takes work of another: csrc/cpu/team.c).

    >>> import pyllama
    >>> from pyllama.decode import PlannedSession
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> session = PlannedSession(model.params, model.config, batch=1, room=8)
    >>> session.extend([[3, 1, 4]]).shape == (1, model.config.vocab_size)
    True
    >>> session.cut([1])
    >>> [len(z) for z in session.extend([[5, 9]], every=True)], session.lengths
    ([2], [3])
    """

    def __init__(self, params: dict, config: Any, batch: int, room: int, memory: tuple[Any, Any] | None = None,
                 cache: str = "reals"):
        self._turn = threading.Lock()               # C reads arrays that another thread's call would replace
        self._plan, self._dtype = plan_of(config, params), dtype_of(params)
        first, groups = self._plan.attention[0], [step.groups for step in self._plan.attention]
        self._machine = compiled(self._plan, self._dtype)
        self._cache = KeysValues(groups, batch, first.width, self._dtype, cache, room)
        self._known: list[list[int]] = [[] for _ in range(batch)]
        self._scores = np.empty((0, self._plan.vocabulary), self._dtype)
        self._memory: list[tuple] = []              # keys and values of the memory, of each layer
        self._mask: np.ndarray | None = None        # [B S], 0 at its padding
        self._source: np.ndarray | None = None      # [B], the row of the memory that each sequence reads
        if memory is not None:
            self._remember(*memory, first.heads, first.width)
        self._hold()

    def _remember(self, x: np.ndarray, mask: np.ndarray, heads: int, width: int) -> None:
        """The keys and values of the memory, which do not change."""
        def split(a):
            return np.ascontiguousarray(a.reshape(*a.shape[:2], heads, width).swapaxes(1, 2))

        for p in self._plan.cross:
            (k, v), _ = keys_values(x, decoded_tree(p, self._dtype))
            self._memory.append((split(k), split(v), None, None))
        self._mask = np.ascontiguousarray(mask != 0)
        self._source = np.arange(len(x), dtype=np.intp)

    def _hold(self) -> None:
        """Tell the machine where the arrays are that grow."""
        tables = self._plan.tables(self._cache.room, self._dtype)
        self._machine.hold(self._cache.layers, self._cache.code, tables, self._memory, self._mask)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each sequence so far."""
        return [len(known) for known in self._known]

    def extend(self, tokens: Tokens, every: bool = False) -> Any:
        """Append tokens[b], at least one, to sequence b; returns the scores [B V] of the next token of each.

        With every=True a list of B arrays [T_b V] instead, the scores after each of the T_b new tokens.  The next call
        overwrites the scores.  Raises IndexError for an id outside the vocabulary, UserError if there are more tokens
        than learned positions.
        """
        with self._turn:
            return self._extended(tokens, every)

    def _extended(self, tokens: Tokens, every: bool) -> Any:
        if len(tokens) != len(self._known) or not all(map(len, tokens)):
            raise ValueError(f"{len(tokens)} lists of new tokens for {len(self._known)} sequences; give each at least "
                             f"one")
        ids: list[int] = []
        owner: list[int] = []
        place: list[int] = []
        ends: list[int] = []
        for b, (known, new) in enumerate(zip(self._known, tokens, strict=True)):
            ids += map(int, new)
            owner += [b] * len(new)
            place += range(len(known), len(known) + len(new))
            ends.append(len(ids))
        self._reserve(max(place) + 1)
        wanted = [*range(len(ids))] if every else [end - 1 for end in ends]
        scores = self._run(ids, owner, place, wanted)
        for known, start, end in zip(self._known, [0, *ends], ends, strict=False):
            known += ids[start:end]
        return np.split(scores, ends[:-1]) if every else scores

    def follow(self, token: int, most: int, among: int, ends: Sequence[int]) -> tuple[list[int], Any]:
        """Append a token to the only sequence, then the most likely ones: see generation.session.Session."""
        with self._turn:
            known, = self._known
            if self._plan.limit:
                most = max(1, min(most, self._plan.limit[0] - len(known)))
            self._reserve(len(known) + most)
            if not len(self._scores):
                self._scores = np.empty((1, self._plan.vocabulary), self._dtype)
            ids = self._machine.follow(token, len(known), most, among, [*ends], self._scores[:1], self._source)
            known += [token, *ids][:max(len(ids), 1)]
            return ids, self._scores[:1]

    def _run(self, ids: list[int], owner: list[int], place: list[int], wanted: list[int]) -> np.ndarray:
        """The scores after the wanted tokens; as many tokens at a time as the machine has rows."""
        if len(wanted) > len(self._scores):
            self._scores = np.empty((len(wanted), self._plan.vocabulary), self._dtype)
        done, rows = 0, self._machine.rows
        for start in range(0, len(ids), rows):
            stop = start + rows
            here = [i - start for i in wanted if start <= i < stop]
            self._machine.run(ids[start:stop], owner[start:stop], place[start:stop], here,
                              self._scores[done:done + len(here)], self._source)
            done += len(here)
        return self._scores[:done]

    def _reserve(self, length: int) -> None:
        """Make room for sequences of this length."""
        if self._plan.limit and length > self._plan.limit[0]:
            most, name = self._plan.limit
            raise UserError(f"the text has {length} tokens, but the model has only {most} positions ({name}); shorten "
                            f"the text")
        if length > self._cache.room:
            self._cache.grow(length)
            self._hold()

    def keep(self, rows: Sequence[int]) -> None:
        """Make the old sequence rows[i] the new sequence i: reorder, drop or duplicate sequences."""
        rows = [*rows]
        if rows == [*range(len(self._known))]:
            return
        with self._turn:
            self._known = [[*self._known[row]] for row in rows]
            self._cache.keep(rows, max(self.lengths, default=0))
            self._source = None if self._source is None else self._source[rows]
            self._hold()

    def cut(self, lengths: Sequence[int]) -> None:
        """Forget the tokens of sequence b from lengths[b] on."""
        self._known = [known[:length] for known, length in zip(self._known, lengths, strict=True)]

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the only sequence, for restore(): see generation.session.Session."""
        known, = self._known
        return {"ids": np.array(known)} | self._cache.state(0, len(known))

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Give the only sequence, which has no tokens yet, the tokens of a state()."""
        with self._turn:
            self._known = [state["ids"].tolist()]
            self._reserve(len(self._known[0]))
            self._cache.restore(0, state, len(self._known[0]))
