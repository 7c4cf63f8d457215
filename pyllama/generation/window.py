"""Texts longer than the context: a session sees a window of them."""
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyllama.generation.session import Session, Tokens

MANY = 1 << 60                              # tokens, where there is no limit


class Window:
    """The sequences of a session, which may become longer than the model's context.

    Of a prompt the last tokens are read.  When the context is full, a text continues with its last half, read again:
    each key depends on all tokens before it, so none can be kept when some leave.

    session     without tokens so far
    context     how many tokens the model can read; None: any number
    """

    def __init__(self, session: Session, context: int | None):
        self.session, self._context = session, context
        self._known: list[list[int]] = [[] for _ in session.lengths]

    def extend(self, tokens: Tokens, every: bool = False) -> Any:
        """See Session.extend; with every=True all tokens must fit: see left()."""
        for known, new in zip(self._known, tokens, strict=True):
            known += new
        if self._context is None:
            return self.session.extend(tokens, every)
        lengths, inputs = self.session.lengths, [*tokens]
        for i, (length, new) in enumerate(zip(lengths, tokens, strict=True)):
            if length + len(new) > self._context:
                shorter = max(1, self._context // 2) if length else self._context
                lengths[i], inputs[i] = 0, self._known[i][-shorter:]
        if inputs != [*tokens]:
            self.session.cut(lengths)
        return self.session.extend(inputs, every)

    def follow(self, token: int, most: int, among: int, ends: Sequence[int]) -> tuple[list[int], Any]:
        """See Session.follow; no more than the context has room for."""
        if self.left() < 1:
            return [], self.extend([[token]])
        ids, scores = self.session.follow(token, min(most, self.left()), among, ends)
        self._known[0] += [token, *ids][:max(len(ids), 1)]
        return ids, scores

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Session.restore."""
        self._known = [state["ids"].tolist()]
        self.session.restore(state)

    def left(self) -> int:
        """How many tokens each sequence can still be extended by before the context is full."""
        return MANY if self._context is None else self._context - max(self.session.lengths)

    def forget(self, count: int) -> None:
        """Forget the last tokens of each sequence, which were all in the window."""
        if count:
            self._known = [known[:-count] for known in self._known]
            self.session.cut([length - count for length in self.session.lengths])

    def rewind(self, ids: Sequence[int]) -> int:
        """Forget the tokens of the only sequence from where they differ from these; returns how many are left.

        None are left of a text that was longer than the context, or whose last call was interrupted.
        """
        known, = self._known
        whole = self.session.lengths == [len(known)]
        left = shared(known, ids) if whole else 0
        self._known = [known[:left]]
        self.session.cut([left])
        return left

    def keep(self, rows: Sequence[int]) -> None:
        """See Session.keep."""
        self._known = [[*self._known[row]] for row in rows]
        self.session.keep(rows)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    return next((n for n, (i, j) in enumerate(zip(a, b, strict=False)) if i != j), min(len(a), len(b)))
