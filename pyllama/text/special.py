"""Tokenizers learned from texts, with the special tokens that tasks and masked models need."""
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pyllama.text.tokenizer import Tokenizer

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")                          # in the order of their ids
MASK = "<mask>"


def byte_pairs(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = (), alone: str = "") -> Tokenizer:
    """Learn byte pairs; the special tokens and the marks come first.  Arguments as for Tokenizer.byte_pairs()."""
    return Tokenizer.byte_pairs(texts, vocab_size, (*SPECIAL, *marks), alone)


def words(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = ()) -> Tokenizer:
    """Learn a vocabulary of words; the special tokens and the marks come first.  See Tokenizer.words()."""
    return Tokenizer.words(texts, vocab_size, (*SPECIAL, *marks))


def ids_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """{"pad_id": ..., "bos_id": ..., "eos_id": ...} of any tokenizer; None for a token it lacks, PAD for pad_id."""
    pad = tokenizer.rust.token_to_id(SPECIAL[PAD])
    return {"pad_id": PAD if pad is None else pad, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None = None) -> list[np.ndarray]:
    """The ids of each text, int64 [N], with the tokenizer's special tokens around it.

    A longer text is truncated to max_length ids, of which the last is the same.  None: there is no limit.
    """
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if tokenizer.rust.num_special_tokens_to_add(False):
        encoded = [ids.astype(int) for ids in tokenizer.encode_batch(texts, add_special_tokens=True)]
    else:
        encoded = [np.array([*start, *ids, *end], int) for ids in tokenizer.encode_batch(texts)]
    if max_length is None:
        return encoded
    return [ids if len(ids) <= max_length else np.append(ids[:max_length - 1], ids[-1]) for ids in encoded]
