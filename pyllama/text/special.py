"""Tokenizers learned from texts, with the special tokens that tasks and masked models need."""
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, processors

from pyllama.text.scripts import UNSPACED
from pyllama.text.tokenizer import Allowed, Tokenizer

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")                          # in the order of their ids
MASK = "<mask>"
WORD = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))     # any text is one token


def byte_pairs(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = (), alone: str = "") -> Tokenizer:
    """Learn byte pairs; the special tokens and the marks come first.  Arguments as for Tokenizer.byte_pairs()."""
    return Tokenizer.byte_pairs(texts, vocab_size, (*SPECIAL, *marks), alone)


def words(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = ()) -> Tokenizer:
    """Learn a vocabulary of words; the special tokens and the marks come first.  See Tokenizer.words()."""
    return Tokenizer.words(texts, vocab_size, (*SPECIAL, *marks))


def separate_words(texts: Iterable[str], vocab_size: int, marks: Sequence[str] = ()) -> Tokenizer:
    """byte_pairs() for tagging: no token has parts of two words, as scripts.runs() separates them, or white space."""
    alone = rf"{UNSPACED.pattern}\p{{M}}*|[^\s\p{{L}}\p{{M}}\p{{N}}]"
    return Tokenizer.byte_pairs(texts, vocab_size, (*SPECIAL, *marks), alone, spaces=False)


def framed(tokenizer: Tokenizer, end: bool = True) -> Tokenizer:
    """The tokenizer with a post-processor that puts the start token before a text and the end token behind it.

    A pair of texts has the end token behind each.  A tokenizer that adds special tokens to a text already, or has none
    to add, is returned as it is.  transformers reads the post-processor too, so both encode texts alike, and the
    characters of a byte-level token are those without its space.

    end    False: without the end token, for models that continue a text
    """
    first, last = tokenizer.special_token("bos_token"), tokenizer.special_token("eos_token") if end else None
    if tokenizer.rust.num_special_tokens_to_add(False) or first is last is None:
        return tokenizer
    ids = {token: tokenizer.rust.token_to_id(token) for token in (first, last) if token is not None}

    def template(*texts):
        """The start token, and the end token behind each text; its type is the text's."""
        return [*([f"{first}:0"] if first else []),
                *(part for text in texts for part in (text, *([f"{last}:{text[-1]}"] if last else [])))]

    frame = processors.TemplateProcessing(template("$A:0"), template("$A:0", "$B:1"), list(ids.items()))
    rust = tokenizers.Tokenizer.from_str(tokenizer.rust.to_str())
    trim = processors.ByteLevel(trim_offsets=True) if isinstance(rust.decoder, decoders.ByteLevel) else None
    before = rust.post_processor or trim
    rust.post_processor = processors.Sequence([before, frame]) if before else frame
    return Tokenizer(rust, tokenizer.settings)


def around(tokenizer: Tokenizer, texts: int = 1) -> list[list[int]]:
    """The ids that the post-processor puts before a text and behind it; of two texts, also between them.

    >>> from pyllama.text import special
    >>> tokenizer = special.framed(special.byte_pairs(["text"], 300))
    >>> special.around(tokenizer), special.around(tokenizer, texts=2)
    ([[1], [2]], [[1], [2], [2]])
    """
    word = WORD.encode("a")
    whole = tokenizer.rust.post_process(word, word if texts == 2 else None)
    text_of = [-1 if text is None else text for text in whole.sequence_ids]
    edges = [edge for text in range(texts) for edge in (text_of.index(text), text_of.index(text) + 1)]
    return [whole.ids[first:past] for first, past in zip([0, *edges[1::2]], [*edges[::2], len(whole.ids)], strict=True)]


def ids_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """{"pad_id": ..., "bos_id": ..., "eos_id": ...} of any tokenizer; None for a token it lacks, PAD for pad_id."""
    pad = tokenizer.pad_id
    return {"pad_id": PAD if pad is None else pad, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None = None,
           allowed_special: Allowed = ()) -> list[np.ndarray]:
    """The ids of each text, int64 [N], with the tokenizer's special tokens around it: see framed().

    A longer text is truncated to max_length ids, of which the last is the same.  None: there is no limit.
    allowed_special is that of Tokenizer.encode().
    """
    encoded = framed(tokenizer).encode_batch(texts, add_special_tokens=True, allowed_special=allowed_special)
    whole = [ids.astype(int) for ids in encoded]
    if max_length is None:
        return whole
    return [ids if len(ids) <= max_length else np.append(ids[:max_length - 1], ids[-1]) for ids in whole]


def prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text to continue: with the special tokens that come before a text, without those behind it.

    Special tokens that the text spells, such as <|im_start|>, are these tokens, as in transformers.
    """
    ids = tokenizer.encode(text, add_special_tokens=True, allowed_special="all").tolist()
    _, behind = around(tokenizer)
    return ids[:len(ids) - len(behind)]
