"""Sentences with a mistake, made from right ones, as rows of the task write.

    python -m bench.mistakes lm_en_tinystories.txt > write.jsonl

Three of four sentences lose an article, have two neighbors exchanged, or a verb that does not agree; one stays right.
"""
import json
import random
import re
import sys
from pathlib import Path

ARTICLES = ("a", "an", "the")
VERBS = (("was", "were"), ("is", "are"), ("has", "have"), ("does", "do"))
DISAGREES = {**dict(VERBS), **{b: a for a, b in VERBS}}
LENGTHS = range(4, 13)                                      # words


def dropped(words):
    """All that the words become where an article is missing."""
    return [words[:i] + words[i + 1:] for i, word in enumerate(words) if word in ARTICLES]


def exchanged(words):
    """All that they become by two neighbors, but not the first with its capital, nor the last with its full stop."""
    return [[*words[:i], words[i + 1], words[i], *words[i + 2:]] for i in range(1, len(words) - 2)
            if words[i] != words[i + 1]]


def disagreeing(words):
    return [[*words[:i], DISAGREES[word], *words[i + 1:]] for i, word in enumerate(words) if word in DISAGREES]


def rows(text: str, seed: int = 0):
    """{"source", "corrected"} of each sentence that is plain and short, once."""
    draw = random.Random(seed)
    sentences = dict.fromkeys(" ".join(one.split()) for one in re.split(r"(?<=[.!?])\s+|<\|endoftext\|>", text))
    for sentence in sentences:
        words = sentence.split(" ")
        if len(words) in LENGTHS and re.fullmatch(r"[A-Z][A-Za-z' ,]*[.!?]", sentence):
            kinds = [found for rule in (dropped, exchanged, disagreeing) if (found := rule(words))]
            right = not kinds or draw.random() < 0.25
            yield {"source": sentence if right else " ".join(draw.choice(draw.choice(kinds))), "corrected": sentence}


def written(source: Path) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows(source.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.stdout.write(written(Path(sys.argv[1])))
