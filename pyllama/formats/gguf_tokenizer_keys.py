"""The keys of a GGUF file for a tokenizer: see gguf_tokenizer.py, which reads them.

SentencePiece's scores are lost in a tokenizer.json.  Any scores in the order of the merges encode texts alike.  A
tokenizer of single characters is written as pieces that never merge.
"""
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models

from pyllama.errors import UserError
from pyllama.formats import gguf_probe, gguf_tokenizer
from pyllama.formats.gguf_metadata import Metadata
from pyllama.formats.gguf_tokenizer import (
    BYTE,
    CONTROL,
    HEX,
    NORMAL,
    PREFIX,
    ROLES,
    TEMPLATE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Rule,
    padding,
    rules,
)
from pyllama.text import alphabets, frames, sentencepiece
from pyllama.text.chat_template import template_of
from pyllama.text.sentencepiece import SPACE
from pyllama.text.tokenizer import Tokenizer


def written(tokenizer: Tokenizer | None, vocab_size: int, ends: bool = False
            ) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(metadata, notes) of a file whose model has so many embeddings.

    ends    the model's configuration names the end token

    The notes say where llama.cpp reads texts otherwise.  Raises UserError for a tokenizer that llama.cpp cannot have.
    """
    if tokenizer is None:
        return {f"{PREFIX}model": "none"}, ()
    rust, ids = json.loads(tokenizer.rust.to_str()), tokenizer.rust.get_vocab()
    table = alphabets.table_of(tokenizer.rust)
    letters = table.alphabet if table else None
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size:,} tokens but the model embeddings of "
                        f"{vocab_size:,}; save the model as a folder")
    texts = [padding(i) for i in range(vocab_size)]
    types = np.full(vocab_size, UNUSED, np.int32)
    if letters:
        kind, own = "llama", of_characters(letters, vocab_size)
    elif rust["model"].get("byte_fallback"):
        kind, own = "llama", of_pieces(rust, vocab_size)
    else:
        kind, own = "gpt2", of_byte_level(rust)
    special = {token["content"]: token["special"] for token in rust["added_tokens"]}
    for text, i in ids.items():
        texts[i], types[i] = text, type_of(text, kind, rust["model"].get("unk_token"), special.get(text))
    if letters:
        texts = [SPACE if text == " " else text for text in texts]
    roles = {PREFIX + name: np.uint32(ids[token]) for role, name in ROLES.items()
             if (token := tokenizer.special_token(role)) is not None and not (ends and role == "eos_token")}
    template = template_of(tokenizer)
    metadata = {f"{PREFIX}model": kind, **own, f"{PREFIX}tokens": texts, f"{PREFIX}token_type": types, **roles,
                **framing(tokenizer, ids), **({TEMPLATE: template} if template else {})}
    ends = ends or f"{PREFIX}eos_token_id" in roles
    return metadata, (*otherwise(tokenizer, metadata, vocab_size), *no_end(kind, texts, ends))


def type_of(text: str, kind: str, unknown: str | None, special: bool | None) -> int:
    """The type of a token.  special: None, unless it is an added token"""
    if kind == "llama" and text == unknown:
        return UNKNOWN
    if special is not None:
        return CONTROL if special else USER_DEFINED
    return BYTE if kind == "llama" and text in HEX else NORMAL


def of_characters(alphabet: Any, vocab_size: int) -> dict[str, Any]:
    """The keys of a tokenizer of single characters: pieces that never merge."""
    if SPACE in alphabet:
        raise UserError(f"the tokenizer has the character {SPACE!r}, by which GGUF files write the space; save the "
                        f"model as a folder")
    return {f"{PREFIX}add_space_prefix": False, f"{PREFIX}scores": np.zeros(vocab_size, np.float32)}


def of_pieces(rust: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The keys of SentencePiece's byte pairs.  The scores are in the order of the merges."""
    ids, merges = rust["model"]["vocab"], [(first, second) for first, second in rust["model"]["merges"]]
    ranks = {piece: i for i, piece in enumerate(dict.fromkeys(map("".join, merges)))}
    single = ids.keys() - ranks.keys() - HEX - {token["content"] for token in rust["added_tokens"]}
    ranks |= {piece: len(ranks) + i for i, piece in enumerate(sorted(single))}
    scores = np.zeros(vocab_size, np.float32)
    for piece, rank in ranks.items():
        scores[ids[piece]] = -rank
    if grouped(sentencepiece.merges((piece, -rank) for piece, rank in ranks.items())) != grouped(merges):
        raise UserError("the merges of the tokenizer are not SentencePiece's, by which llama.cpp would replace them; "
                        "save the model as a folder")
    if missing := HEX - ids.keys():
        raise UserError(f"the tokenizer lacks the byte {min(missing)}, which llama.cpp needs; save the model as a "
                        f"folder")
    return {f"{PREFIX}add_space_prefix": prefixed(rust), f"{PREFIX}scores": scores}


def grouped(merges: list[tuple[str, str]]) -> list[tuple[str, set[str]]]:
    """The pieces in the order of their merges, each with the first parts of its merges."""
    return [(piece, {first for first, _ in those}) for piece, those in groupby(merges, key="".join)]


def prefixed(rust: dict[str, Any]) -> bool:
    """Does the tokenizer put a space before a text, of which it changes nothing else?"""
    steps = rust["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = steps["normalizers"] if steps["type"] == "Sequence" else [steps]
    prefix = {"type": "Prepend", "prepend": SPACE} in steps
    rest = [step for step in steps if step != {"type": "Prepend", "prepend": SPACE}]
    replaced, split = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}], rust["pre_tokenizer"]
    if rest == replaced and split is None:
        return prefix
    if not steps and split and split["type"] == "Metaspace" and split["replacement"] == SPACE and not split["split"]:
        return split["prepend_scheme"] != "never"
    raise UserError("the tokenizer changes texts in a way that GGUF files do not describe; save the model as a folder")


def of_byte_level(rust: dict[str, Any]) -> dict[str, Any]:
    """The keys of byte-level byte pairs."""
    model = rust["model"]
    plain = model["type"] == "BPE" and rust["normalizer"] is None and (rust["decoder"] or {}).get("type") == "ByteLevel"
    split = without_trimming(rust["pre_tokenizer"])
    names = [name for name, rule in rules().items() if split == described(rule) and
             (rule.whole == model.get("ignore_merges", False) or not model.get("merges"))]
    if not plain or not names or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UserError("llama.cpp has no such tokenizer: it reads SentencePiece's byte pairs, byte-level byte pairs "
                        "that split texts as GPT-2, LLaMA 3 or SmolLM do, and single characters; save the model as a "
                        "folder")
    return {f"{PREFIX}pre": names[0], f"{PREFIX}merges": [f"{first} {second}" for first, second in model["merges"]]}


def described(rule: Rule) -> Any:
    """The pre-tokenizer of a rule, as tokenizer.json has it."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = rule.split
    return without_trimming(json.loads(rust.to_str())["pre_tokenizer"])


def without_trimming(node: Any) -> Any:
    """A part of a tokenizer.json without trim_offsets, which change no token."""
    if isinstance(node, dict):
        return {key: without_trimming(value) for key, value in node.items() if key != "trim_offsets"}
    return [*map(without_trimming, node)] if isinstance(node, list) else node


def framing(tokenizer: Tokenizer, ids: dict[str, int]) -> dict[str, bool]:
    """The keys for the special tokens around a text."""
    present = frames.around(tokenizer.rust)
    roles = [tokenizer.special_token(role) for role in ("bos_token", "eos_token")]
    if any(around and around != [ids.get(role or "")] for around, role in zip(present, roles, strict=True)):
        raise UserError("the tokenizer puts other special tokens around a text than a start and an end token; save the "
                        "model as a folder")
    return {f"{PREFIX}add_bos_token": bool(present[0]), f"{PREFIX}add_eos_token": bool(present[1])}


def otherwise(tokenizer: Tokenizer, metadata: dict[str, Any], vocab_size: int) -> tuple[str, ...]:
    """A note if the tokenizer that is read from the metadata encodes a probe otherwise."""
    values = Metadata(Path("the file"), metadata)
    again, _ = gguf_tokenizer.read(values, vocab_size)
    assert again
    kind = metadata[f"{PREFIX}model"]
    vocabulary = gguf_tokenizer.read_vocabulary(values, vocab_size, kind)
    any_text = kind == "gpt2" or BYTE in metadata[f"{PREFIX}token_type"]
    text = gguf_probe.unlike(tokenizer, again, vocabulary, any_text)
    return () if text is None else (f"llama.cpp will read {text!r} otherwise than the tokenizer does",)


def no_end(kind: str, texts: list[str], ends: bool) -> tuple[str, ...]:
    """A note if llama.cpp takes an ordinary token for the end of a text, because none is named."""
    end = {"llama": 2, "gpt2": 11}[kind]
    if ends or end >= len(texts):
        return ()
    return (f"the tokenizer has no end token, so llama.cpp takes the token {texts[end]!r} for it; run it with "
            f"--ignore-eos",)
