"""Tokenizers learned from texts, with the special tokens that tasks and masked models need."""
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.text import frames
from pyllama.text.scripts import UNSPACED
from pyllama.text.tokenizer import NAMES, Allowed, Tokenizer

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")                          # in the order of their ids
MASK = "<mask>"


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
    """The tokenizer with a post-processor that puts the start token before a text and the end token after it.

    A pair of texts has the end token after each.  A tokenizer that is bare, adds special tokens to a text already, or
    has none to add, is returned as it is.  transformers reads the post-processor too, so both encode texts alike, and
    the characters of a byte-level token are those without its space.

    end    False: without the end token, for models that continue a text
    """
    first, last = tokenizer.special_token("bos_token"), tokenizer.special_token("eos_token") if end else None
    if tokenizer.bare or tokenizer.rust.num_special_tokens_to_add(False) or first is last is None:
        return tokenizer
    return Tokenizer(frames.framed(tokenizer.rust, first, last), tokenizer.settings)


def around(tokenizer: Tokenizer, texts: int = 1) -> list[list[int]]:
    """The ids that the post-processor puts before a text and after it; of two texts, also between them.

    >>> from pyllama.text import special
    >>> tokenizer = special.framed(special.byte_pairs(["text"], 300))
    >>> special.around(tokenizer), special.around(tokenizer, texts=2)
    ([[1], [2]], [[1], [2], [2]])
    """
    return frames.around(tokenizer.rust, texts)


class Frame(NamedTuple):
    """The special tokens around each document of a corpus."""
    before: list[int]
    behind: list[int]
    words: str                                              # where a document stands, such as "after <s>"


def frame(tokenizer: Tokenizer) -> Frame:
    """The frame of documents: what the post-processor adds to a text, or else the end token after it.

    Without either, a line break separates the documents, if the tokenizer knows it.
    """
    before, behind = around(tokenizer)
    if not before and not behind and tokenizer.eos_id is not None:
        behind = [tokenizer.eos_id]
    first, last = ("".join(tokenizer.rust.id_to_token(i) or str(i) for i in ids) for ids in (before, behind))
    words = f"between {first} and {last}" if before and behind else f"after {first}" if before else \
        f"followed by {last}" if behind else "separated by line breaks"
    return Frame(before, behind, words)


def no_end(tokenizer: Tokenizer) -> tuple[str, ...]:
    """A note if none of the special tokens is known as the end of a text, though one without a role may be."""
    roles = {name for names in NAMES.values() for name in names}
    others = [token for i in tokenizer.special_ids if (token := tokenizer.rust.id_to_token(i) or "") not in roles]
    if not others or tokenizer.eos_id is not None or frame(tokenizer).behind:
        return ()
    listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return (f"none of the special tokens is known as the end of a text; if one of {listed} is, name it as eos_token in "
            f"tokenizer_config.json",)


def knowing(tokenizer: Tokenizer, config: Any) -> Tokenizer:
    """The tokenizer, with the special tokens of config.json in roles that neither its settings nor its names fill."""
    roles = {}
    for role in "eos_token", "bos_token", "pad_token":
        stored = getattr(config, f"{role}_id", None)
        first = stored[0] if isinstance(stored, list) and stored else stored
        if tokenizer.special_token(role) is None and isinstance(first, int) and first in tokenizer.special_ids:
            roles[role] = tokenizer.rust.id_to_token(first)
    return Tokenizer(tokenizer.rust, {**tokenizer.settings, **roles}) if roles else tokenizer


def ids_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """{"pad_id": ..., "bos_id": ..., "eos_id": ...} of any tokenizer; None for a token it lacks, PAD for pad_id."""
    pad = tokenizer.pad_id
    return {"pad_id": PAD if pad is None else pad, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None = None,
           allowed_special: Allowed = ()) -> list[np.ndarray]:
    """The ids of each text, int64 [N], with the tokenizer's special tokens around it: see framed().

    A longer text is truncated to max_length ids, among them the special tokens.  None: there is no limit.
    allowed_special is that of Tokenizer.encode().
    """
    tokenizer = framed(tokenizer)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=True, allowed_special=allowed_special)
    whole = [ids.astype(int) for ids in encoded]
    if max_length is None:
        return whole
    _, behind = around(tokenizer)
    kept = max(0, max_length - len(behind))
    return [ids if len(ids) <= max_length else np.append(ids[:kept], behind).astype(int) for ids in whole]


def prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text to continue: with the special tokens that come before a text, without those after it.

    Special tokens that the text spells, such as <|im_start|>, are these tokens, as in transformers.
    """
    ids = tokenizer.encode(text, add_special_tokens=True, allowed_special="all").tolist()
    _, behind = around(tokenizer)
    return ids[:len(ids) - len(behind)]


def unknown_tokens(tokenizer: Tokenizer | None, vocab_size: int) -> tuple[str, ...]:
    """A note on special tokens that transformers added to the tokenizer and a model has no embeddings for.

    Raises UserError if other tokens are outside the model's vocabulary.
    """
    if tokenizer is None or tokenizer.vocab_size <= vocab_size:
        return ()
    if tokenizer.rust.get_vocab_size(with_added_tokens=False) > vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens but the model's vocabulary has {vocab_size}; "
                        f"give the tokenizer that the model was trained with")
    added = tokenizer.rust.get_added_tokens_decoder()
    names = [str(token) for i, token in added.items() if i >= vocab_size]
    return (f"the model does not know these tokens of the tokenizer, so texts must not have them: {', '.join(names)}",)
