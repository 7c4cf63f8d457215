"""Tokenizers whose tokens are single characters or bytes."""
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers


def characters(alphabet: Sequence[str]) -> tokenizers.Tokenizer:
    """One token for each character; the ids are indices in the alphabet."""
    rust = tokenizers.Tokenizer(models.WordLevel({character: i for i, character in enumerate(alphabet)}))
    rust.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    rust.decoder = decoders.Fuse()
    return rust


def single_bytes() -> tokenizers.Tokenizer:
    """BPE without merges.  Its alphabet represents a printable byte by itself, and the others in order by U+0100 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in alphabet if ord(character) < 256]
    values = printable + sorted(set(range(256)) - set(printable))
    rust = tokenizers.Tokenizer(models.BPE(dict(zip(alphabet, values, strict=True)), []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    return rust
