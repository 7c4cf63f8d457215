"""Tokens, as a person reads them."""
from pyllama.text.tokenizer import Tokenizer

BROKEN = "\ufffd"                               # a part of a character


def spelled(tokenizer: Tokenizer, i: int) -> str:
    """A token as text; one that is not text as the vocabulary spells it.

    >>> from pyllama.study.spelling import spelled
    >>> from pyllama.text.special import byte_pairs
    >>> tokenizer = byte_pairs(["aa"], 300)
    >>> [spelled(tokenizer, i) for i in (0, *tokenizer.encode("a"))]
    ['<pad>', 'a']
    """
    text = tokenizer.decode([int(i)])
    return text if text and BROKEN not in text else str(tokenizer.rust.id_to_token(int(i)) or int(i))


def label(token: str) -> str:
    r"""A token beside a number: a line end is \n, and white space alone is in quotes.

    >>> from pyllama.study.spelling import label
    >>> [label(token) for token in (" the", " ", "\n")]
    [' the', "' '", "'\\n'"]
    """
    return repr(token) if not token.strip() else token.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
