"""Tokens, as a person reads them."""
from pyllama.text.alphabets import byte_values
from pyllama.text.tokenizer import Tokenizer

BROKEN = "\ufffd"                               # a part of a character


def spelled(tokenizer: Tokenizer, i: int) -> str:
    """A token as text; a part of a character as its bytes; one that is not text as the vocabulary spells it.

    >>> from pyllama.study.spelling import spelled
    >>> from pyllama.text.special import byte_pairs
    >>> tokenizer = byte_pairs(["aa"], 300)
    >>> [spelled(tokenizer, i) for i in (0, *tokenizer.encode("aé"))]
    ['<pad>', 'a', '<0xC3>', '<0xA9>']
    """
    text = tokenizer.decode([int(i)])
    if text and BROKEN not in text:
        return text
    piece, values = str(tokenizer.rust.id_to_token(int(i)) or int(i)), byte_values()
    is_part = bool(text) and all(character in values for character in piece)
    return "".join(f"<0x{values[character]:02X}>" for character in piece) if is_part else piece


def label(token: str) -> str:
    r"""A token beside a number: a line end is \n, and white space alone is in quotes.

    >>> from pyllama.study.spelling import label
    >>> [label(token) for token in (" the", " ", "\n")]
    [' the', "' '", "'\\n'"]
    """
    return repr(token) if not token.strip() else token.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
