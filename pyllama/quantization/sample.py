"""A text as rows to calibrate with, and as tokens that calibration does not see."""
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyllama.errors import UserError, with_article
from pyllama.quantization.calibration import calibrated_tree
from pyllama.quantization.encoded import encoded_tree, plain
from pyllama.quantization.passes import Rows, of_text
from pyllama.text import special
from pyllama.text.corpus import Sources
from pyllama.text.cuts import Cut, cut_for
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Tokens, prepare, split

WINDOW = 512                                                # tokens of a row, if the model's context is as long
TOKENS = 2**15                                              # to calibrate with, at most
NUMBERS = 2**26                                             # in the inputs of the widest matrix, at most


class Sample(NamedTuple):
    """A text, for a model."""
    rows: Rows                                              # to calibrate with
    held_out: Tokens                                        # empty if nothing is
    cut: Cut                                                # into windows, in which the model reads both
    window: int                                             # T


def sampled(tokens: Tokens, tokenizer: Tokenizer, c: Any, held_out: float = 0.0, most: int = TOKENS) -> Sample:
    """A sample of tokens that text.tokens.prepare() has made with the tokenizer.

    held_out    the share of the tokens, at the end, that is not used for calibration
    most        tokens to calibrate with, at most; fewer for a wide model, whose activations are larger

    Rows are taken from all parts of the text.  Raises UserError if the model does not continue texts, or if the text or
    a part of it is shorter than a window.
    """
    if c.learns != "next token":
        raise UserError(f"calibration needs a model that continues text, but the model is {with_article(c.TYPE)} with "
                        f"the head {c.head!r}; leave the text out")
    window = min(c.context or WINDOW, WINDOW)
    parts = 1 / min(held_out, 1 - held_out) if held_out else 1
    if len(tokens) < (needed := int(np.ceil((window + 2) * parts))):
        raise UserError(f"the text has {len(tokens):,} tokens, but calibration in windows of {window} needs "
                        f"{needed:,}; give more text")
    cut = cut_for(tokens, special.frame(tokenizer), window)
    widest = max(c.hidden_size, getattr(c, "intermediate_size", None) or 4 * c.hidden_size)
    used, held = split(tokens, held_out, block_size=window) if held_out else (tokens, tokens.between(0, 0))
    return Sample(of_text(*spread(used, cut, window, min(most, NUMBERS // widest))), held, cut, window)


def spread(tokens: Tokens, cut: Cut, window: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels) [B T+1] of about `count` tokens, in windows that are spread evenly over the tokens."""
    if cut.by_document:
        step = max(1, len(tokens) // count)
        some = tokens.where(np.arange(len(tokens.starts)) % step == 0)
        ids, labels = next(cut.windows(some, len(some), window))
        rows = max(1, int(np.sum(np.cumsum(np.sum(labels != -100, axis=1)) <= count)))
        return ids[:rows], labels[:rows]
    rows, starts = max(1, count // window), np.arange(0, len(tokens) - window, window)
    starts = starts[::max(1, len(starts) // rows)][:rows]
    ids = tokens[starts[:, None] + np.arange(window + 1)]
    return ids, ids


def quantized_tree(tree: dict, c: Any, kind: str, data: Sources | None, tokenizer: Callable[[], Tokenizer]) -> dict:
    """The tree of a model in a storage format, rounded to the nearest, or calibrated with a text: see Model.quantize.

    tokenizer   returns the model's, which a text needs
    """
    tree = plain(tree, kind)
    if data is None:
        return encoded_tree(tree, kind, c)
    with tempfile.TemporaryDirectory() as folder:
        sample = sampled(prepare(data, tokenizer(), folder), tokenizer(), c)
    return calibrated_tree(tree, c, kind, sample.rows)
