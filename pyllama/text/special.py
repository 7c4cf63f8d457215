"""Tokenizers learnt from texts, with the special tokens that tasks and masked models need."""
from collections.abc import Iterable, Sequence
from typing import Any

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
