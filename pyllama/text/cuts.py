"""How a text is cut into rows to be evaluated: end to end, or each document for itself.

A model that has read documents each after a start token, as LLaMA has, is evaluated in the same way.  Without a start
token the documents were read end to end, so that is how they are evaluated.
"""
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.text.special import Frame
from pyllama.text.tokens import Tokens, evaluation_windows

TAILS = 0.1                                         # the largest share of tokens that are left out as ends of documents


class Cut(NamedTuple):
    """A way to cut tokens, and in words."""
    by_document: bool
    tails: bool                                     # by document: are tokens beyond the first window evaluated, too?
    words: str

    def windows(self, tokens: Tokens, batch_size: int, block_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids, labels), both int64 [B T+1]: see evaluation_windows()."""
        if self.by_document:
            return document_windows(tokens, batch_size, block_size, self.tails)
        return evaluation_windows(tokens, batch_size, block_size)


def cut_for(tokens: Tokens, frame: Frame, block_size: int) -> Cut:
    """The cut for tokens that were prepared with this frame.

    A document longer than block_size tokens has an end that the model cannot read together with its beginning.  Such
    ends are left out if they are few (TAILS); otherwise all documents are cut into windows.
    """
    if not frame.before:
        return Cut(False, True, end_to_end(tokens, frame, block_size))
    sizes = tokens.stops - tokens.starts
    long, beyond = int((sizes > block_size).sum()), int(np.maximum(sizes - block_size, 0).sum())
    words = f"each document for itself, {frame.words}"
    if not long:
        return Cut(True, False, words)
    if beyond > TAILS * len(tokens):
        return Cut(True, True, f"{words}, in windows of {block_size:,} tokens")
    return Cut(True, False, f"{words}; {long:,} of {len(sizes):,} documents are longer than {block_size:,} tokens, and "
                            f"their ends, {beyond:,} tokens, are left out")


def end_to_end(tokens: Tokens, frame: Frame, block_size: int) -> str:
    """How tokens that were prepared with this frame are cut for training, in words."""
    windows = f"in windows of {block_size:,} tokens"
    alone = len(tokens.starts) == 1 and not frame.before and not frame.behind
    return f"the text {windows}" if alone else f"documents end to end {windows}, each {frame.words}" \
        if frame.before or frame.behind else f"documents end to end {windows}, {frame.words}"


def document_windows(tokens: Tokens, batch_size: int, block_size: int,
                     tails: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids, labels), both int64 [B T+1]: every token of a document but the first is a target exactly once.

    tails    False: only the first block_size tokens of each document

    The labels are the ids, not shifted, and -100 at padding, as in evaluation_windows().  Raises UserError if no
    document has 2 tokens.
    """
    ends = np.cumsum(tokens.stops - tokens.starts)
    rows = [(first, min(first + block_size + 1, end))
            for begin, end in zip((ends - tokens.stops + tokens.starts).tolist(), ends.tolist(), strict=True)
            for end in ([end] if tails else [min(end, begin + block_size)])
            for first in range(begin, end - 1, block_size)]
    if not rows:
        raise UserError("no document has 2 tokens to evaluate on; give more text")
    for start in range(0, len(rows), batch_size):
        bounds = np.array(rows[start:start + batch_size])
        positions = bounds[:, :1] + np.arange((bounds[:, 1] - bounds[:, 0]).max())
        inside = positions < bounds[:, 1:]
        ids = np.where(inside, tokens[np.minimum(positions, bounds[:, 1:] - 1)], 0)
        yield ids, np.where(inside, ids, -100)
