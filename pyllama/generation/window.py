"""Texts longer than the context: a session sees a window of them."""
from collections.abc import Sequence
from typing import Any

from pyllama.generation.session import Session, Tokens


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

    def keep(self, rows: Sequence[int]) -> None:
        """See Session.keep."""
        self._known = [[*self._known[row]] for row in rows]
        self.session.keep(rows)
