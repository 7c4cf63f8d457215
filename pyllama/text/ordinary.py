"""Texts are data: special tokens written in them are ordinary text, and no character of them is lost in silence.

A tokenizer finds its special tokens wherever a text spells them, so a row about HTML could end a text by </s>.
ordinary() is the same tokenizer without that.  BPE without an unknown token drops characters that its vocabulary lacks.
Alphabet finds them.
"""
import functools
import json
from collections.abc import Collection
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

HIDDEN = "\U0010ffff\U0010fffe"                     # two noncharacters, which no text has


def ordinary(rust: tokenizers.Tokenizer, allowed: Collection[str] = ()) -> tokenizers.Tokenizer:
    """The tokenizer with its special tokens hidden from texts, except the allowed ones.

    Every token keeps its id.  A hidden token has another spelling, also in the model's vocabulary, because some models
    (Unigram, WordLevel) would find it there.
    """
    parts = json.loads(rust.to_str())
    hidden = {token["content"] for token in parts["added_tokens"] if token["special"]} - set(allowed)

    def renamed(token):
        return HIDDEN + token if token in hidden else token

    for token in parts["added_tokens"]:
        token["content"] = renamed(token["content"])
    model = parts["model"]
    vocabulary = model["vocab"]
    model["vocab"] = {renamed(token): i for token, i in vocabulary.items()} if isinstance(vocabulary, dict) else \
        [[renamed(token), score] for token, score in vocabulary]
    if "merges" in model:
        model["merges"] = [pair for pair in map(_pair, model["merges"]) if hidden.isdisjoint([*pair, "".join(pair)])]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed(model["unk_token"])
    return tokenizers.Tokenizer.from_str(json.dumps(parts))


def _pair(merge) -> list[str]:
    """The two tokens of a merge; older files write them with a space between."""
    return merge.split(" ") if isinstance(merge, str) else merge


class Alphabet:
    """The characters that a tokenizer can encode.

    The library is asked about each token: a copy of its vocabulary would take as much memory as the tokenizer.
    """

    def __init__(self, rust: tokenizers.Tokenizer):
        self._rust = rust
        self._model: Any = rust.model
        self._known: dict[str, bool] = {}           # {character: is it missing?}

    @functools.cached_property
    def complete(self) -> bool:
        """Does the tokenizer encode every character, if need be as unknown, or refuse it with an error?"""
        if not isinstance(self._model, models.BPE) or self._model.unk_token is not None:
            return True
        if self._model.byte_fallback:
            return all(self._has(f"<0x{byte:02X}>") for byte in range(256))
        return self._by_bytes and all(map(self._has, pre_tokenizers.ByteLevel.alphabet()))

    @property
    def _by_bytes(self) -> bool:
        """Does a step turn a text into bytes?"""
        steps = self._rust.normalizer, self._rust.pre_tokenizer
        return any(b"ByteLevel" in step.__getstate__() for step in steps if step)       # its JSON

    def _has(self, token: str) -> bool:
        return self._model.token_to_id(token) is not None

    def missing(self, text: str) -> str | None:
        """The first character of the text that the tokenizer would drop; None: there is none.

        What the normalizer and the pre-tokenizer remove, such as spaces, is not missing.
        """
        if self.complete:
            return None
        characters = set(text)
        self._known |= {character: self._is_missing(character) for character in characters - self._known.keys()}
        return min(filter(self._known.__getitem__, characters), key=text.index, default=None)

    def _is_missing(self, character: str) -> bool:
        rust = self._rust
        text = rust.normalizer.normalize_str(character) if rust.normalizer else character
        pieces = [piece for piece, _ in rust.pre_tokenizer.pre_tokenize_str(text)] if rust.pre_tokenizer else [text]
        before, behind = self._model.continuing_subword_prefix or "", self._model.end_of_word_suffix or ""
        return any(not any(map(self._has, (unit, before + unit, unit + behind, before + unit + behind)))
                   for piece in pieces for unit in piece if unit != "▁" or character == "▁")
