"""Word vectors for a model to begin with: those of its tokens, in its table of tokens."""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyllama import params
from pyllama.errors import UserError
from pyllama.formats import vectors
from pyllama.models.config import Dimensions
from pyllama.text.tokenizer import Tokenizer


class TokenVectors(NamedTuple):
    """Word vectors of a tokenizer's tokens."""
    ids: list[int]
    rows: np.ndarray                                        # [N D], one for each of the ids

    @property
    def width(self) -> int:
        return self.rows.shape[1]


def read(path: Path, tokenizer: Tokenizer) -> TokenVectors:
    """The vectors of the tokens that are words of the file, or would be in lower case.  UserError if none is."""
    texts = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]
    words, rows = vectors.read(path, {form for text in texts for form in (text, text.lower())} - {""})
    row_of = {word: i for i, word in enumerate(words)}
    rows_of_tokens = {i: row_of.get(text, row_of.get(text.lower())) for i, text in enumerate(texts) if text}
    known = {i: row for i, row in rows_of_tokens.items() if row is not None}
    if not known:
        raise UserError(f"{path} has no vector for any token of the texts; give vectors of their language")
    return TokenVectors(list(known), rows[list(known.values())])


def heads_for(width: int) -> int:
    """How many heads a model of this width has: at most the usual number, of an even width; 1 where there is none."""
    return next((heads for heads in range(Dimensions.heads, 0, -1) if width % (2 * heads) == 0), 1)


def place(known: TokenVectors, p: dict, config) -> None:
    """Write them into the model's table of tokens, the first of its leaves with a row for each."""
    table = next(leaf for _, leaf in params.leaves(p) if leaf.shape == (config.vocab_size, known.width))
    table[known.ids] = known.rows
