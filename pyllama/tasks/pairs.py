"""Texts, or pairs of texts, as a model's inputs.

    <s> text </s>                       or as the tokenizer's post-processor has it
    <s> text </s> text_pair </s>        token types, if the model has them: 0 up to the first </s>, then 1
"""
from collections.abc import Sequence

import numpy as np

from pyllama.tasks.rows import Row
from pyllama.tasks.task import Trained
from pyllama.text import special


def inputs(rows: Sequence[Row], trained: Trained, max_length: int | None = None) -> list[dict[str, np.ndarray]]:
    """{ids [T]} of each row with a text and, if it has one, a text_pair; also {types [T]} if any row has one and the
    model takes types.

    Inputs of more than max_length tokens are truncated, of a pair the longer text first.  None: there is no limit.
    """
    with_types = trained.config.takes_types and any("text_pair" in row.values for row in rows)
    singles = [row.values["text"] for row in rows if "text_pair" not in row.values]
    of_singles = iter(special.encode(trained.tokenizer, singles, max_length, trained.markers))
    of_pairs = pairs([row for row in rows if "text_pair" in row.values], trained, max_length)
    made = []
    for row in rows:
        if "text_pair" in row.values:
            ids, types = next(of_pairs)
        else:
            ids = next(of_singles)
            types = np.zeros(len(ids), int)
        made.append({"ids": ids, "types": types} if with_types else {"ids": ids})
    return made


def pairs(rows: Sequence[Row], trained: Trained, max_length: int | None):
    """Yield (ids [T], types [T]) of each row, all of which have a text_pair."""
    start, middle, end = special.around(special.framed(trained.tokenizer), texts=2)
    first, second = (trained.tokenizer.encode_batch([row.values[name] for row in rows], allowed_special=trained.markers)
                     for name in ("text", "text_pair"))
    for a, b in zip(first, second, strict=True):
        if max_length is not None:
            room = max(0, max_length - len(start) - len(middle) - len(end))
            keep = lengths_within(room, len(a), len(b))
            a, b = a[:keep[0]], b[:keep[1]]
        parts = (start, a, middle, b, end)
        types = np.repeat([0, 0, 0, 1, 1], [len(part) for part in parts])
        yield np.concatenate(parts).astype(int), types


def lengths_within(room: int, a: int, b: int) -> tuple[int, int]:
    """How many tokens of texts of a and b tokens remain, if the longer one loses tokens until both have room.

    This is the truncation "longest_first" of Hugging Face's tokenizers: of an odd room the longer text has the rest.

    >>> from pyllama.tasks.pairs import lengths_within
    >>> lengths_within(9, 20, 3), lengths_within(9, 7, 20), lengths_within(9, 2, 3)
    ((6, 3), (4, 5), (2, 3))
    """
    if a + b <= room:
        return a, b
    shorter = min(a, b, room // 2)
    return (shorter, room - shorter) if a <= b else (room - shorter, shorter)
