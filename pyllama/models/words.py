"""The parts shared by skip-gram and GloVe: their configuration and the order of an epoch."""
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.models.config import Config
from pyllama.shapes import require_below
from pyllama.text.epochs import shuffled
from pyllama.text.tokens import Tokens


@dataclass(frozen=True)
class WordsConfig(Config):
    """The size of two tables of word vectors, and the size of a word's context."""

    vocab_size: int = 10000                     # V
    hidden_size: int = 100                      # D
    window: int = 5                             # words on either side of a word

    def __post_init__(self):
        self.check(positive=("vocab_size", "hidden_size", "window"))


def laid_out(tokens: Tokens, c: WordsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(ids [N], the index [N] of each token's document), int64.  Raises UserError if there are fewer than 2 tokens."""
    if len(tokens) < 2:
        raise UserError(f"there are {len(tokens)} tokens, but a pair needs 2; give more text")
    ids = tokens[:]
    require_below(ids, c.vocab_size)
    return ids, np.repeat(np.arange(len(tokens.starts)), tokens.stops - tokens.starts)


def visit(size: int, batch_size: int, seed: int, step: int) -> tuple[int, np.ndarray]:
    """(epoch, indices): the indices below `size` that belong to this step (0, 1, ...).

    An epoch visits each index once, in random order.  Its last step has the remainder.
    """
    epoch, turn = divmod(step, -(-size // batch_size))
    _, order = shuffled(size, seed, "order", epoch)
    return epoch, order[turn * batch_size:(turn + 1) * batch_size]
