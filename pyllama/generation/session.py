"""What generation sees of a model: sequences that grow, each with the scores of its next token.

    session = open_session(params, config, batch=2, room=100)
    scores = session.extend([[5, 3, 8], [4]])                   # [2 V]: two prompts
    scores = session.extend([[7], [9]])                         # a token each
    session.keep([1, 1])                                        # the second twice, as a beam search needs it
    session.cut([1, 1])                                         # without its last token

Sequences do not see each other, so the scores of one are the same in every batch, up to rounding.
"""
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from pyllama.decode import PlannedSession, has_plan
from pyllama.decode.plan import dtype_of
from pyllama.device import host
from pyllama.errors import UserError
from pyllama.machine import one_blas_thread
from pyllama.models import transformer
from pyllama.models.adapters import merged
from pyllama.models.kv_cache import Cache, new_cache
from pyllama.models.layers import token_scores
from pyllama.params import leaves
from pyllama.quantization import decoded_tree, is_quantized

Tokens = Sequence[Sequence[int]]
CACHES = {"full": "reals", "f16": "f16", "int8": "int8"}            # of GenerationConfig -> of decode/cache.py


class Memory(NamedTuple):
    """What an encoder makes of a batch of sources: see encoded()."""
    x: Any                                  # [B S D]
    mask: Any                               # [B S], 0 at padding


class Session(Protocol):
    """B sequences of tokens, each with its own length, and a cache of their keys and values.

    The arrays that it returns are NumPy's, in the dtype of the computation; they may be overwritten by the next call.
    """

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each sequence so far."""

    def extend(self, tokens: Tokens, every: bool = False) -> Any:
        """Append tokens[b], at least one, to sequence b; returns the scores [B V] of the next token of each.

        With every=True a list of B arrays [T_b V] instead, the scores after each of the T_b new tokens.  The numbers
        T_b may differ, except for the targets of an encoder-decoder.  A call that fails appends nothing, nor does one
        that is interrupted.
        """

    def follow(self, token: int, most: int, among: int, ends: Sequence[int]) -> tuple[list[int], Any]:
        """Append a token to the only sequence, then perhaps the most likely tokens that follow.

        most    how many tokens are appended at most
        among   a token is chosen among the ids below
        ends    the tokens after which none is appended

        Returns the list of the most likely tokens after each that was appended, and the scores [1 V] after the last.
        The list is empty if the caller is to choose by these: not every session chooses, and none does where the best
        score is not finite.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Make the old sequence rows[i] the new sequence i: reorder, drop or duplicate sequences.

        The number of sequences may grow beyond the batch of open_session.
        """

    def cut(self, lengths: Sequence[int]) -> None:
        """Forget the tokens of sequence b from lengths[b] on.  0 <= lengths[b] <= self.lengths[b]."""

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the only sequence of a decoder's session, for restore(): {name: array}.

        "ids"           int64 [T]
        "layers.I.k"    [G T K], the keys of layer I = 0, 1, ...: position t at index t; rotated, if the family rotates
        "layers.I.v"    [G T K], the values

        Every kind of session writes this layout and reads it, in the dtype of its keys and values.
        """

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Give the only sequence of this session, which has no tokens yet, the tokens of a state()."""


class DynamicSession:
    """A Session that runs a decoder op by op: for every family and every kind of array.

    The keys and values of all sequences end at the same column of one cache, and the shorter ones begin with padding.
    When the sequences grow or shrink by different numbers of tokens, all are encoded again.
    """

    def __init__(self, params: dict, config: Any, batch: int, room: int):
        self._p, self._c, self._room = params, config, room
        self._like = next(leaves(params))[1]
        self._tokens: list[list[int]] = [[] for _ in range(batch)]
        self._caches: list[Cache] = []              # of each layer; none: encode all tokens
        self._mask: Any = None                      # [B S], 0 at padding

    @property
    def lengths(self) -> list[int]:
        """See Session."""
        return [len(known) for known in self._tokens]

    def extend(self, tokens: Tokens, every: bool = False) -> Any:
        """See Session."""
        lengths = self.lengths
        try:
            return self._extended(tokens, every)
        except BaseException:                       # Ctrl-C, too: some layers' caches may have the new tokens already
            self._caches = []
            self.cut(lengths)
            raise

    def follow(self, token: int, most: int, among: int, ends: Sequence[int]) -> tuple[list[int], Any]:
        """See Session."""
        return [], self.extend([[token]])

    def _extended(self, tokens: Tokens, every: bool) -> Any:
        for known, new in zip(self._tokens, tokens, strict=True):
            known.extend(new)
        even = len({len(new) for new in tokens}) == 1
        if self._caches and even:
            ids = np.array(tokens)
            self._mask = np.concatenate([self._mask, np.ones_like(ids)], axis=1)
        else:
            ids, self._mask = padded(self._tokens)
            self._caches = self._new_caches()
        padding = None if self._mask.all() else np.asarray(self._mask, like=self._like)
        with one_blas_thread():
            scores = host(self._scores(np.asarray(ids, like=self._like), padding, every))
        return [z[len(z) - len(new):] for z, new in zip(scores, tokens, strict=True)] if every else scores

    def keep(self, rows: Sequence[int]) -> None:
        """See Session."""
        if [*rows] == [*range(len(self._tokens))]:
            return
        self._tokens = [[*self._tokens[row]] for row in rows]
        for cache in self._caches:
            cache.keep([*rows])
        self._mask = None if self._mask is None else self._mask[[*rows]]

    def cut(self, lengths: Sequence[int]) -> None:
        """See Session."""
        removed = {len(known) - length for known, length in zip(self._tokens, lengths, strict=True)}
        self._tokens = [known[:length] for known, length in zip(self._tokens, lengths, strict=True)]
        if len(removed) > 1 or not any(lengths):
            self._caches = []
        elif self._caches:
            self._mask = self._mask[:, :self._mask.shape[1] - removed.pop()]
            for cache in self._caches:
                cache.cut(self._mask.shape[1])

    def state(self) -> dict[str, np.ndarray]:
        """See Session."""
        known, = self._tokens
        if not self._caches or not self._mask.all():            # keys are rotated by their column
            self._tokens, self._caches = [[]], []
            self.extend([known])
        kept = {"ids": np.array(known)}
        for i, cache in enumerate(self._caches):
            for name, a in zip("kv", cache.contents(), strict=True):
                kept[f"layers.{i}.{name}"] = host(a[0]).copy()
        return kept

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Session."""
        self._tokens = [state["ids"].tolist()]
        self._mask = np.ones((1, len(state["ids"])), int)
        self._caches = self._new_caches()
        for i, cache in enumerate(self._caches):
            cache.extend(*(np.asarray(state[f"layers.{i}.{name}"][None], like=self._like) for name in "kv"))

    def _new_caches(self) -> list[Cache]:
        return new_cache(self._c, len(self._tokens), self._like, max(self._room, *self.lengths, 1))

    def _scores(self, ids, mask, every):
        """Scores [B V] of the next token, or [B T V] after each of ids [B T]."""
        if every:
            return self._c.model.logits(ids, self._p, self._c, mask=mask, recompute=True, caches=self._caches)[0]
        return self._c.model.next_scores(ids, self._p, self._c, mask=mask, caches=self._caches)


class TargetSession(DynamicSession):
    """A DynamicSession of an encoder-decoder: targets, which all have the same length, for encoded sources."""

    def __init__(self, params: dict, config: Any, batch: int, room: int, memory: Memory):
        super().__init__(params, config, batch, room)
        self._memory, self._sources = memory, [*range(batch)]
        self._cross = [kv for _, (kv, _) in transformer.remember(memory.x, params["model"], config, room=1)]

    def extend(self, tokens: Tokens, every: bool = False) -> Any:
        """See Session.  Raises ValueError if the numbers of tokens differ."""
        if len({len(known) + len(new) for known, new in zip(self._tokens, tokens, strict=True)}) > 1:
            raise ValueError("the targets of an encoder-decoder have the same length")
        return super().extend(tokens, every)

    def keep(self, rows: Sequence[int]) -> None:
        """See Session."""
        super().keep(rows)
        before, self._sources = self._sources, [self._sources[row] for row in rows]
        if self._sources != before:                 # the beams of a source share what they attend to
            self._memory = Memory(self._memory.x[[*rows]], self._memory.mask[[*rows]])
            self._cross = [(k[[*rows]], v[[*rows]]) for k, v in self._cross]

    def _new_caches(self) -> list[Cache]:
        B, H, D = len(self._tokens), self._c.decoder_attention_heads, self._c.d_model
        return [Cache(B, H, D // H, self._like, max(self._room, *self.lengths, 1)) for _ in self._cross]

    def _scores(self, ids, mask, every):
        caches = [(own, (kv, None)) for own, kv in zip(self._caches, self._cross, strict=True)]
        x, _ = transformer.decode(ids, self._memory.x, self._p["model"], self._c, mask=self._memory.mask,
                                  recompute=True, caches=caches)
        return token_scores(x if every else x[:, -1], *transformer.head(self._p, self._c))[0]


def open_session(params: dict, config: Any, batch: int, room: int, memory: Memory | None = None,
                 cache: str = "full") -> Session:
    """A session of `batch` empty sequences.

    params, config    the tree of parameters, whose adapters are merged here, and the configuration
    room              how many tokens a sequence may have
    memory            the encoded sources of an encoder-decoder, one for each sequence
    cache             how a plan keeps keys and values: "full", in the precision of the computation, "f16" or "int8";
                      "auto" is "f16" where matrices are stored in a format of GGUF, else "full"

    The session runs a plan (see pyllama/decode) if the model has one and its arrays are the C kernels'.  Raises
    UserError for "f16" or "int8" where no plan of float32 runs.

    >>> import pyllama
    >>> from pyllama.generation.session import open_session
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> session = open_session(model.params, model.config, batch=2, room=10)
    >>> scores = session.extend([[5, 3, 8], [4]])
    >>> scores.shape == (2, model.config.vocab_size), session.lengths
    (True, [3, 1])
    """
    params = merged(params, config)
    planned = has_plan(config, params)
    if cache == "auto":                         # a half's error, 2^-11, is at most that of the matrices
        cache = "f16" if planned and is_quantized(params) else "full"
    if cache != "full" and not (planned and dtype_of(params) == np.float32):
        raise UserError(f"cache {cache} needs a model of float32 that runs as a plan; remove it (`pyllama plan` shows "
                        f"whether it does)")
    if planned:
        return PlannedSession(params, config, batch, room, memory, CACHES[cache])
    params = decoded_tree(params)
    if memory is not None:
        return TargetSession(params, config, batch, room, memory)
    return DynamicSession(params, config, batch, room)


def encoded(params: dict, config: Any, sources: Tokens) -> Memory:
    """The memory of the sources, sequences of ids, which an encoder-decoder reads."""
    p = decoded_tree({name: part for name, part in params["model"].items() if name != "decoder"})
    like, S = next(leaves(p))[1], max(map(len, sources))
    ids = np.array([[*source, *[config.pad_token_id or 0] * (S - len(source))] for source in sources])
    mask = np.array([[1] * len(source) + [0] * (S - len(source)) for source in sources])
    ids, mask = (np.asarray(a, like=like) for a in (ids, mask))
    with one_blas_thread():
        x, _ = transformer.encode(ids, p, config, mask=mask, recompute=True)
    return Memory(x, mask)


def padded(sequences: Tokens):
    """(ids [B T], mask [B T]): the sequences padded on the left; the mask is 0 at padding."""
    T = max(map(len, sequences))
    return (np.array([[0] * (T - len(s)) + [*s] for s in sequences]),
            np.array([[0] * (T - len(s)) + [1] * len(s) for s in sequences]))
