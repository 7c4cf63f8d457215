"""Tokenizers learned from texts, with the special tokens that tasks and masked models need."""
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pyllama.text.tokenizer import Tokenizer

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")                          # in the order of their ids
MASK = "<mask>"


def byte_pairs(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = (), alone: str = "") -> Tokenizer:
    """Byte pairs, after the special tokens and the marks, which become tokens too.  alone: see Tokenizer.byte_pairs."""
    return Tokenizer.byte_pairs(texts, vocab_size, (*SPECIAL, *marks), alone)


def words(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = ()) -> Tokenizer:
    """Words, after the special tokens and the marks."""
    return Tokenizer.words(texts, vocab_size, (*SPECIAL, *marks))


def ids_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """pad_id, bos_id and eos_id of any tokenizer, by these names."""
    pad = tokenizer.rust.token_to_id(SPECIAL[PAD])
    return {"pad_id": PAD if pad is None else pad, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """The ids of each text, with the special tokens around it that the tokenizer asks for; at most max_length."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if tokenizer.rust.num_special_tokens_to_add(False):
        whole = [ids.astype(int) for ids in tokenizer.encode_batch(texts, add_special_tokens=True)]
    else:
        whole = [np.array([*start, *ids, *end], int) for ids in tokenizer.encode_batch(texts)]
    return [ids if len(ids) <= max_length else np.append(ids[:max_length - 1], ids[-1]) for ids in whole]
