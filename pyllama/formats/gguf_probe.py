"""Does a tokenizer read a text as llama.cpp does?  A wrong one fails silently: the model only writes worse."""
from itertools import pairwise

import numpy as np

from pyllama.text.sentencepiece import BYTE, CONTROL, SPACE, UNKNOWN, USER_DEFINED, Pieces
from pyllama.text.tokenizer import Tokenizer

TEXT = " Hello,  world! It's 2024: x_1 = 3.14;\n\tif (a<b) return \"çà\";\n\n日本語 Привет 🦙 don't I'LL  "
PLACES = 20                                         # of the vocabulary from which words are joined to more text
LONGEST = 300                                       # characters of a text: merged() takes the square of them

CURE = "give the tokenizer.json of the model with `tokenizer`"


def texts(vocabulary: Pieces, any_text: bool) -> list[str]:
    """Texts that a tokenizer with this vocabulary can encode.  any_text: it encodes every character"""
    ordinary = [text.replace(SPACE, " ") for text in vocabulary.of_types(1)]
    step = max(1, len(ordinary) // PLACES)
    probes = [TEXT, TEXT.strip(), "".join(ordinary[::step]), *ordinary[-PLACES:]]
    if not any_text:
        known = {*"".join(ordinary)}
        probes = ["".join(filter(known.__contains__, text)) for text in probes]
    return [text[:LONGEST] for text in probes if text]


def of_pieces(tokenizer: Tokenizer, vocabulary: Pieces, prefix: bool) -> tuple[str, ...]:
    """A note if SentencePiece's byte pairs, made from a file, read a probe otherwise than llama.cpp."""
    for text in texts(vocabulary, BYTE in vocabulary.types):
        if tokenizer.encode(text).tolist() != merged(SPACE * prefix + text.replace(" ", SPACE), vocabulary):
            return (f"the tokenizer reads {text!r} otherwise than llama.cpp, as where pieces have equal scores; "
                    f"{CURE}",)
    return ()


def of_bytes(tokenizer: Tokenizer) -> tuple[str, ...]:
    """A note if byte-level byte pairs, made from a file, do not give a probe back."""
    if tokenizer.decode(tokenizer.encode(TEXT)) == TEXT:
        return ()
    return (f"the tokenizer does not give {TEXT!r} back; {CURE}",)


def merged(text: str, vocabulary: Pieces) -> list[int]:
    """The ids of a text, as llama.cpp finds them: of two neighbors those merge whose union has the highest score.

    The leftmost win if scores are equal.  A character without a piece becomes its bytes, or else unknown.
    """
    ids, scores = vocabulary.ids, vocabulary.scores
    unknown = int(np.argmax(vocabulary.types == UNKNOWN))               # the first, or 0
    symbols = [*text]
    while unions := [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]:
        at = -max(unions)[1]
        symbols[at:at + 2] = ["".join(symbols[at:at + 2])]
    return [i for symbol in symbols for i in
            ([ids[symbol]] if symbol in ids else [ids.get(f"<0x{byte:02X}>", unknown) for byte in symbol.encode()])]


def unlike(tokenizer: Tokenizer, other: Tokenizer, vocabulary: Pieces, any_text: bool) -> str | None:
    """A probe that two tokenizers encode otherwise, or None."""
    marks = vocabulary.of_types(CONTROL, USER_DEFINED)[:PLACES]
    probes = texts(vocabulary, any_text)
    for text in (*probes, "".join([*probes[:1], *marks, *probes[:1]])):
        ids, others = (each.encode(text, True, allowed_special="all") for each in (tokenizer, other))
        if not np.array_equal(ids, others):
            return text
    return None
