"""Where a long text may be cut so that its parts, encoded apart, have the tokens of the whole.

A tokenizer merges characters within words.  So a text may be cut where a word surely ends: which words there are
depends on the tokenizer, and for one that is not described here nothing is sure.
"""
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers

# A part ends where a match starts, and the next begins where it ends.
BEFORE_LINE_BREAK = re.compile(r"(?<=\S)(?=\n)")            # GPT-2's pattern starts a word there
BETWEEN_LINES = re.compile(r"(?<=[^\W_])(?=\n[^\W_])")
AT_WORD_END = re.compile(r"(?<=\S)(?=[ \n])")              # in every splitter into words with at most leading space
AT_SPACE = re.compile(r"(?<=[^\W_]) (?=[^\W_])")            # left out, because a space is put before each part

WHITE_SPACE = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}        # they end words at white space
BY_CHARACTER = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
LEAST, MOST = 2**14, 4                                      # characters of a piece: LEAST to MOST · LEAST
SPACES = ({"String": " "}, {"Regex": " {2,}"})              # patterns that Replace may have


def border(rust: tokenizers.Tokenizer) -> re.Pattern | None:
    """A pattern of the places where a text may be cut; None if none is sure."""
    parts = json.loads(rust.to_str())
    if any(not token["special"] for token in parts["added_tokens"]):       # it may be found across a cut
        return None
    steps, before = _steps(parts["normalizer"]), parts["pre_tokenizer"] or {}
    kinds = {step["type"] for step in steps}
    if not steps and before.get("type") == "ByteLevel" and before["use_regex"] and not before["add_prefix_space"]:
        return BEFORE_LINE_BREAK
    if before.get("type") in WHITE_SPACE and kinds <= BY_CHARACTER:
        return BETWEEN_LINES
    return AT_SPACE if _prepends(steps, before) and _ends_at_spaces(parts["model"]) else None


def _steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer."""
    if normalizer is None:
        return []
    return normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]


def _prepends(steps: list[dict[str, Any]], before: dict[str, Any]) -> bool:
    """Does SentencePiece's ▁ stand for each space, and come before a text?"""
    others = [step for step in steps if step["type"] not in BY_CHARACTER | {"Precompiled", "Strip"}]
    if any(step["pattern"] not in SPACES for step in others if step["type"] == "Replace"):
        return False
    names = [step["type"] for step in others if step.get("pattern") != SPACES[1]]
    if before.get("type") == "Metaspace":
        return not names and before.get("prepend_scheme") in ("always", "first")
    return not before and names == ["Prepend", "Replace"] and others[-1]["content"] == others[-2]["prepend"] == "▁"


def _ends_at_spaces(model: dict[str, Any]) -> bool:
    """Does every token end before a ▁ that follows another character?"""
    vocabulary = model["vocab"] if isinstance(model["vocab"], dict) else [token for token, _ in model["vocab"]]
    return model["type"] in ("BPE", "Unigram") and not model.get("ignore_merges") and "▁" in vocabulary \
        and not any(re.search("[^▁]▁", token) for token in vocabulary)


def cut(text: str, border: re.Pattern, least: int) -> list[str]:
    """Cut a text at borders into parts of at least so many characters, but for the last."""
    parts, start = [], 0
    while found := border.search(text, start + least):
        parts.append(text[start:found.start()])
        start = found.end()
    return [*parts, text[start:]]


def pieces(texts: Iterable[str], least: int = LEAST) -> Iterator[str]:
    """Cut texts at ends of words into pieces of `least` to MOST · least characters, to learn words from them.

    Only a run without white space that is longer than the largest piece is cut elsewhere.
    """
    for text in texts:
        start = 0
        while len(text) - start > least:
            end = start + MOST * least
            found = AT_WORD_END.search(text, start + least, end)
            stop = found.start() if found else end
            yield text[start:stop]
            start = stop
        yield text[start:]


def spread(texts: Iterable[str], total: int, most: int, least: int = LEAST) -> Iterator[str]:
    """Yield pieces of texts of `total` characters, about `most` of them, spread evenly; all if there are no more."""
    done = taken = 0
    for piece in pieces(texts, least):
        if taken * total <= done * most:
            taken += len(piece)
            yield piece
        done += len(piece)
