"""The tokenizer in a GGUF file: SentencePiece's byte pairs, or byte-level byte pairs.

    tokenizer.ggml.model    llama: pieces with scores; of two neighbors those whose union has the highest score merge
                            gpt2: merges in their order, of words that tokenizer.ggml.pre names a rule to split
    tokens, token_type      the texts by id, and what they are: see NORMAL, UNKNOWN, ...

Of the rules only those that this module reproduces are read and written: see rules().  gguf_tokenizer_keys.py writes.
"""
import functools
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from pyllama.errors import UserError
from pyllama.formats import gguf_probe
from pyllama.formats.gguf_metadata import Metadata
from pyllama.text import alphabets, frames, sentencepiece
from pyllama.text.sentencepiece import SPACE, Pieces
from pyllama.text.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)         # SentencePiece's numbers, too
ROLES = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
         "pad_token": "padding_token_id", "mask_token": "mask_token_id"}
USUAL = {"bos_token": 1, "eos_token": 2, "unk_token": 0}                    # of llama, where the file has no ids
HEX = {f"<0x{byte:02X}>" for byte in range(256)}
CURE = "give another tokenizer with `tokenizer`"
LONGEST = 1000                                              # characters of a token: its merges take the square of them


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
    if kind == "llama" and (vocabulary.types == NORMAL).all() and {*map(len, vocabulary.texts)} <= {1}:
        return Tokenizer(alphabets.characters([text.replace(SPACE, " ") for text in vocabulary.texts])), ()
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


def read_vocabulary(metadata: Metadata, vocab_size: int, kind: str) -> Pieces:
    """The tokens, without the padding at their end."""
    tokens = metadata.texts(f"{PREFIX}tokens")
    if len(tokens) != vocab_size:
        raise UserError(f"{metadata.path} has {len(tokens):,} tokens, but embeddings of {vocab_size:,}; convert the "
                        f"model again")
    if len({*tokens}) < len(tokens):
        (twice, _), = Counter(tokens).most_common(1)
        raise UserError(f"{metadata.path} has the token {twice!r} twice; convert the model again")
    if (length := max(map(len, tokens))) > LONGEST:
        raise UserError(f"{metadata.path} has a token of {length:,} characters, but {LONGEST:,} are read; {CURE}")
    scores = metadata.numbers(f"{PREFIX}scores", np.zeros(len(tokens)))
    types = metadata.numbers(f"{PREFIX}token_type", np.array(      # the first files had none
        [BYTE if kind == "llama" and text in HEX else NORMAL for text in tokens]))
    end = len(tokens)
    while end and types[end - 1] == UNUSED and tokens[end - 1] == padding(end - 1):
        end -= 1
    return Pieces(tokens[:end], scores[:end], types[:end])


def read_roles(metadata: Metadata, vocabulary: Pieces, kind: str) -> dict[str, str]:
    """The special tokens by role."""
    roles, count = {}, len(vocabulary.texts)
    for role, name in ROLES.items():
        i = metadata.id(PREFIX + name, count)
        if i is None and kind == "llama" and USUAL.get(role, count) < count and \
                vocabulary.types[USUAL[role]] in (UNKNOWN, CONTROL):
            i = USUAL[role]
        if i is not None:
            roles[role] = vocabulary.texts[i]
    return roles


def byte_level(metadata: Metadata, vocabulary: Pieces) -> tuple[tokenizers.Tokenizer, bool]:
    """(byte-level byte pairs, do texts begin with the start token?)"""
    path, name = metadata.path, metadata.text(f"{PREFIX}pre", "")
    if name not in rules():
        how = f"by the rule {name!r}" if name else "by no rule that it names, as old files do"
        raise UserError(f"the tokenizer in {path} splits texts {how}, but {', '.join(rules())} are read; {CURE}")
    ids, texts = vocabulary.ids, vocabulary.texts
    if missing := alphabets.byte_values().keys() - ids.keys():
        raise UserError(f"the tokenizer in {path} lacks the byte {alphabets.byte_values()[min(missing)]}; {CURE}")
    merges = []
    for merge in metadata.texts(f"{PREFIX}merges"):
        first, _, second = merge.partition(" ")
        if not {first, second, first + second} <= ids.keys():
            raise UserError(f"the tokenizer in {path} has the merge {merge!r}, but no such tokens; {CURE}")
        merges.append((texts[ids[first]], texts[ids[second]]))          # the same objects, to save memory
    rust = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=rules()[name].whole))
    rust.pre_tokenizer, rust.decoder = rules()[name].split, decoders.ByteLevel()
    for special, types in ((True, (UNKNOWN, CONTROL)), (False, (USER_DEFINED,))):
        rust.add_tokens([AddedToken(text, normalized=False, special=special)
                         for text in vocabulary.of_types(*types)])
    return rust, rules()[name].begin


def pieces(metadata: Metadata, vocabulary: Pieces, roles: dict[str, str]) -> tokenizers.Tokenizer:
    """SentencePiece's byte pairs."""
    prefix = metadata.flag(f"{PREFIX}add_space_prefix", True)
    types = vocabulary.types.copy()
    for text in roles.values():
        types[vocabulary.ids[text]] = UNKNOWN if text == roles.get("unk_token") else CONTROL
    if UNKNOWN not in types:
        raise UserError(f"the tokenizer in {metadata.path} has no unknown token; {CURE}")
    whole = replace(vocabulary, types=types)
    by_bytes = BYTE in types
    if by_bytes and (missing := HEX - {*whole.of_types(BYTE)}):
        raise UserError(f"the tokenizer in {metadata.path} lacks the byte {min(missing)}; {CURE}")
    parts = sentencepiece.Parts(whole, {3: sentencepiece.BPE, 35: int(by_bytes)}, {3: int(prefix), 4: 0})
    return sentencepiece.tokenizer_of(parts)


def padding(i: int) -> str:
    """The text of an embedding without a token, as llama.cpp's converter has it."""
    return f"[PAD{i}]"
