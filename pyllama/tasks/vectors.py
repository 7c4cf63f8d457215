"""Initialize a model's embeddings with pretrained word vectors."""
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
    rows: np.ndarray                                        # [N D], one vector for each id

    @property
    def width(self) -> int:
        """D"""
        return self.rows.shape[1]


def read(path: Path, tokenizer: Tokenizer) -> TokenVectors:
    """The vectors of the tokens that are words of the file, as they are or in lower case.

    Raises UserError if no token has a vector.
    """
    texts = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]
    words, rows = vectors.read(path, {form for text in texts for form in (text, text.lower())} - {""})
    row_of = {word: i for i, word in enumerate(words)}
    rows_of_tokens = {i: row_of.get(text, row_of.get(text.lower())) for i, text in enumerate(texts) if text}
    with_vector = {i: row for i, row in rows_of_tokens.items() if row is not None}
    if not with_vector:
        raise UserError(f"{path} has no vector for any token of the texts; give vectors of their language")
    return TokenVectors(list(with_vector), rows[list(with_vector.values())])


def heads_for(width: int) -> int:
    """The largest number of heads, up to the default, that gives heads of even width; 1 if there is none."""
    return next((heads for heads in range(Dimensions.heads, 0, -1) if width % (2 * heads) == 0), 1)


def place(vectors: TokenVectors, p: dict, config) -> None:
    """Write the vectors into the model's token embeddings, the first leaf of shape [V D]."""
    table = next(leaf for _, leaf in params.leaves(p) if leaf.shape == (config.vocab_size, vectors.width))
    table[vectors.ids] = vectors.rows
