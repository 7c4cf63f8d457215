"""What skip-gram and GloVe share: the form of their configurations and the order of an epoch."""
from dataclasses import dataclass

import numpy as np

from pyllama.errors import UserError
from pyllama.models.config import Config
from pyllama.shapes import require_below
from pyllama.text.epochs import shuffled
from pyllama.text.tokens import Tokens


@dataclass(frozen=True)
class WordsConfig(Config):
    """The shape of two tables of word vectors, and how far a word sees."""

    vocab_size: int = 10000                     # V
    hidden_size: int = 100                      # D
    window: int = 5                             # words to either side that are a word's context

    def __post_init__(self):
        self.check(positive=("vocab_size", "hidden_size", "window"))


def laid_out(tokens: Tokens, c: WordsConfig) -> tuple[np.ndarray, np.ndarray]:
    """(ids[N], the number of each one's document [N]), int64.  UserError if there are fewer than two."""
    if len(tokens) < 2:
        raise UserError(f"there are {len(tokens)} tokens, but it takes 2 to make a pair; give more text")
    ids = tokens[:]
    require_below(ids, c.vocab_size)
    return ids, np.repeat(np.arange(len(tokens.starts)), tokens.stops - tokens.starts)


def visit(size: int, batch_size: int, seed: int, step: int) -> tuple[int, np.ndarray]:
    """(epoch, places): which of `size` things belong to this step (0, 1, ...).

    An epoch visits each once, in an order of its own.  Its last step has what is left.
    """
    epoch, turn = divmod(step, -(-size // batch_size))
    _, order = shuffled(size, seed, "order", epoch)
    return epoch, order[turn * batch_size:(turn + 1) * batch_size]
