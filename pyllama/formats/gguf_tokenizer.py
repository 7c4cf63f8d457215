"""The tokenizer in a GGUF file, read and written: SentencePiece's byte pairs, or byte-level byte pairs.

    tokenizer.ggml.model    llama: pieces with scores; of two neighbors those whose union has the highest score merge
                            gpt2: merges in their order, of words that tokenizer.ggml.pre names a rule to split
    tokens, token_type      the texts by id, and what they are: see NORMAL, UNKNOWN, ...

Of the rules only those that this module reproduces are read and written: see rules().  A tokenizer of single
characters is written as pieces that never merge.
"""
import functools
import json
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from pyllama.errors import UserError
from pyllama.formats import gguf_probe
from pyllama.formats.gguf_metadata import Metadata
from pyllama.text import alphabets, frames, sentencepiece
from pyllama.text.chat_template import template_of
from pyllama.text.sentencepiece import SPACE
from pyllama.text.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)         # SentencePiece's numbers, too
ROLES = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
         "pad_token": "padding_token_id", "mask_token": "mask_token_id"}
USUAL = {"bos_token": 1, "eos_token": 2, "unk_token": 0}                    # of llama, where the file has no ids
HEX = {f"<0x{byte:02X}>" for byte in range(256)}
CURE = "give another tokenizer with `tokenizer`"


class Rule(NamedTuple):
    """A rule by which byte-level byte pairs split a text into words."""
    split: Any                                              # the pre-tokenizer
    whole: bool = False                                     # a word that is a token is not made of merges
    begin: bool = False                                     # texts begin with the start token, if the file is silent


@functools.cache
def rules() -> dict[str, Rule]:
    """The rules by their names in tokenizer.ggml.pre."""
    def by(regex: str) -> Any:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    words = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    marks = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    endings = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {"gpt-2": Rule(gpt2),
            "llama-bpe": Rule(by(rf"{endings}|{words}|\p{{N}}{{1,3}}|{marks}"), whole=True, begin=True),
            "smollm": Rule(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]))}


# Reading

def read(metadata: Metadata, vocab_size: int) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """(tokenizer, notes) of a file; None if it has none.

    The notes say where the tokenizer reads a probe otherwise than llama.cpp.  Raises UserError for one that cannot be
    reproduced, or contradicts itself.
    """
    kind = metadata.text(f"{PREFIX}model", "none")
    if kind in ("none", "no_vocab"):
        return None, ()
    if kind not in ("llama", "gpt2"):
        raise UserError(f"{metadata.path} has a tokenizer of the kind {kind!r}, but llama and gpt2 are read; {CURE}")
    vocabulary = read_vocabulary(metadata, vocab_size, kind)
    if kind == "llama" and all(kind == NORMAL and len(text) == 1 for text, _, kind in vocabulary):
        return Tokenizer(alphabets.characters([text.replace(SPACE, " ") for text, _, _ in vocabulary])), ()
    roles = read_roles(metadata, vocabulary, kind)
    rust, begin = byte_level(metadata, vocabulary) if kind == "gpt2" else (pieces(metadata, vocabulary, roles), True)
    first = roles.get("bos_token") if metadata.flag(f"{PREFIX}add_bos_token", begin) else None
    last = roles.get("eos_token") if metadata.flag(f"{PREFIX}add_eos_token", False) else None
    if first or last:
        rust.post_processor = frames.frame(rust, first, last)
    template = metadata.text(TEMPLATE, "")
    tokenizer = Tokenizer(rust, {**roles, **({"chat_template": template} if template else {})})
    if kind == "gpt2":
        return tokenizer, gguf_probe.of_bytes(tokenizer)
    return tokenizer, gguf_probe.of_pieces(tokenizer, vocabulary, metadata.flag(f"{PREFIX}add_space_prefix", True))


def read_vocabulary(metadata: Metadata, vocab_size: int, kind: str) -> list[tuple[str, float, int]]:
    """[(text, score, type), ...] by id, without the padding at its end."""
    tokens = metadata.texts(f"{PREFIX}tokens")
    if len(tokens) != vocab_size:
        raise UserError(f"{metadata.path} has {len(tokens):,} tokens, but embeddings of {vocab_size:,}; convert the "
                        f"model again")
    if len({*tokens}) < len(tokens):
        twice = next(text for i, text in enumerate(tokens) if text in tokens[:i])
        raise UserError(f"{metadata.path} has the token {twice!r} twice; convert the model again")
    scores = metadata.numbers(f"{PREFIX}scores", np.zeros(len(tokens)))
    types = metadata.numbers(f"{PREFIX}token_type", np.array(      # the first files had none
        [BYTE if kind == "llama" and text in HEX else NORMAL for text in tokens]))
    whole = [(text, float(score), int(kind)) for text, score, kind in zip(tokens, scores, types, strict=True)]
    while whole and whole[-1][2] == UNUSED and whole[-1][0] == padding(len(whole) - 1):
        whole.pop()
    return whole


def read_roles(metadata: Metadata, vocabulary: list[tuple[str, float, int]], kind: str) -> dict[str, str]:
    """The special tokens by role."""
    roles = {}
    for role, name in ROLES.items():
        i = metadata.id(PREFIX + name, len(vocabulary))
        if i is None and kind == "llama" and USUAL.get(role, len(vocabulary)) < len(vocabulary) and \
                vocabulary[USUAL[role]][2] in (UNKNOWN, CONTROL):
            i = USUAL[role]
        if i is not None:
            roles[role] = vocabulary[i][0]
    return roles


def byte_level(metadata: Metadata, vocabulary: list[tuple[str, float, int]]) -> tuple[tokenizers.Tokenizer, bool]:
    """(byte-level byte pairs, do texts begin with the start token?)"""
    path, name = metadata.path, metadata.text(f"{PREFIX}pre", "")
    if name not in rules():
        how = f"by the rule {name!r}" if name else "by no rule that it names, as old files do"
        raise UserError(f"the tokenizer in {path} splits texts {how}, but {', '.join(rules())} are read; {CURE}")
    ids = {text: i for i, (text, _, _) in enumerate(vocabulary)}
    if missing := alphabets.byte_values().keys() - ids.keys():
        raise UserError(f"the tokenizer in {path} lacks the byte {alphabets.byte_values()[min(missing)]}; {CURE}")
    merges = []
    for merge in metadata.texts(f"{PREFIX}merges"):
        first, _, second = merge.partition(" ")
        if not {first, second, first + second} <= ids.keys():
            raise UserError(f"the tokenizer in {path} has the merge {merge!r}, but no such tokens; {CURE}")
        merges.append((first, second))
    rust = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=rules()[name].whole))
    rust.pre_tokenizer, rust.decoder = rules()[name].split, decoders.ByteLevel()
    for special, kinds in ((True, (UNKNOWN, CONTROL)), (False, (USER_DEFINED,))):
        rust.add_tokens([AddedToken(text, normalized=False, special=special) for text, _, kind in vocabulary
                         if kind in kinds])
    return rust, rules()[name].begin


def pieces(metadata: Metadata, vocabulary: list[tuple[str, float, int]], roles: dict[str, str]) -> tokenizers.Tokenizer:
    """SentencePiece's byte pairs."""
    prefix = metadata.flag(f"{PREFIX}add_space_prefix", True)
    if roles.get("unk_token") is None and not any(kind == UNKNOWN for _, _, kind in vocabulary):
        raise UserError(f"the tokenizer in {metadata.path} has no unknown token; {CURE}")
    whole = [(text, score, UNKNOWN if text == roles.get("unk_token") else CONTROL if text in roles.values() else kind)
             for text, score, kind in vocabulary]
    by_bytes = any(kind == BYTE for _, _, kind in whole)
    if by_bytes and (missing := HEX - {text for text, _, kind in whole if kind == BYTE}):
        raise UserError(f"the tokenizer in {metadata.path} lacks the byte {min(missing)}; {CURE}")
    parts = sentencepiece.Parts(whole, {3: sentencepiece.BPE, 35: int(by_bytes)}, {3: int(prefix), 4: 0})
    return sentencepiece.tokenizer_of(parts)


# Writing

def written(tokenizer: Tokenizer | None, vocab_size: int, ends: bool = False
            ) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(metadata, notes) of a file whose model has so many embeddings.

    ends    the model's configuration names an end token

    The notes say where llama.cpp reads texts otherwise.  Raises UserError for a tokenizer that llama.cpp cannot have.
    """
    if tokenizer is None:
        return {f"{PREFIX}model": "none"}, ()
    rust = json.loads(tokenizer.rust.to_str())
    table = alphabets.table_of(tokenizer.rust)
    ids = tokenizer.rust.get_vocab()
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size:,} tokens but the model embeddings of "
                        f"{vocab_size:,}; save the model as a folder")
    texts = [padding(i) for i in range(vocab_size)]
    types = np.full(vocab_size, UNUSED, np.int32)
    if table and table.alphabet is not None:
        kind, own = "llama", of_characters(table.alphabet, vocab_size)
    elif rust["model"].get("byte_fallback"):
        kind, own = "llama", of_pieces(rust, vocab_size)
    else:
        kind, own = "gpt2", of_byte_level(rust)
    special = {token["content"]: token["special"] for token in rust["added_tokens"]}
    for text, i in ids.items():
        texts[i], types[i] = text, type_of(text, kind, rust["model"].get("unk_token"), special.get(text))
    if f"{PREFIX}add_space_prefix" in own and table:
        texts = [SPACE if text == " " else text for text in texts]
    roles = {PREFIX + name: np.uint32(ids[token]) for role, name in ROLES.items()
             if (token := tokenizer.special_token(role)) is not None}
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


def padding(i: int) -> str:
    """The text of an embedding without a token, as llama.cpp's converter has it."""
    return f"[PAD{i}]"


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
    again, _ = read(values, vocab_size)
    assert again
    kind = metadata[f"{PREFIX}model"]
    vocabulary = read_vocabulary(values, vocab_size, kind)
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
