"""Make sentences with a grammatical mistake from correct ones, as rows of the task `write`.

    python -m bench.mistakes lm_en_tinystories.txt > write.jsonl

Three of four sentences get one mistake: a missing article, two swapped neighbors, or a verb that does not agree.  The
fourth stays correct.
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


def without_an_article(words):
    """Every version of the sentence that lacks one of its articles."""
    return [words[:i] + words[i + 1:] for i, word in enumerate(words) if word in ARTICLES]


def with_neighbors_swapped(words):
    """Every version with two different neighbors swapped; the first word (capital) and the last (full stop) stay."""
    return [[*words[:i], words[i + 1], words[i], *words[i + 2:]] for i in range(1, len(words) - 2)
            if words[i] != words[i + 1]]


def with_a_disagreeing_verb(words):
    return [[*words[:i], DISAGREES[word], *words[i + 1:]] for i, word in enumerate(words) if word in DISAGREES]


def rows(text: str, seed: int = 0):
    """Yield {"source": ..., "corrected": ...} for each distinct short sentence of plain words."""
    draw = random.Random(seed)
    sentences = dict.fromkeys(" ".join(piece.split()) for piece in re.split(r"(?<=[.!?])\s+|<\|endoftext\|>", text))
    for sentence in sentences:
        words = sentence.split(" ")
        if len(words) in LENGTHS and re.fullmatch(r"[A-Z][A-Za-z' ,]*[.!?]", sentence):
            rules = (without_an_article, with_neighbors_swapped, with_a_disagreeing_verb)
            kinds = [versions for rule in rules if (versions := rule(words))]
            correct = not kinds or draw.random() < 0.25
            source = sentence if correct else " ".join(draw.choice(draw.choice(kinds)))
            yield {"source": source, "corrected": sentence}


def as_json_lines(source: Path) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows(source.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.stdout.write(as_json_lines(Path(sys.argv[1])))
