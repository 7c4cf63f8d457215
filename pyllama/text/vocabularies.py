"""Tokenizers from the files that Hugging Face's older tokenizers keep: a vocabulary, and the settings beside it.

    vocab.json and merges.txt                                    byte-level byte pairs: GPT-2, RoBERTa, BART
    tokenizer.model, spiece.model, sentencepiece.bpe.model       SentencePiece: LLaMA, T5, XLM-RoBERTa
    vocab.txt                                                    word pieces: BERT, DistilBERT, Electra
"""
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from pyllama.errors import UserError
from pyllama.files import parse_json
from pyllama.text import frames, sentencepiece
from pyllama.text.sentencepiece import Pieces

BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
ROBERTA = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>",
           "sep_token": "</s>", "mask_token": "<mask>"}
OFFSET = ("xlmroberta", "xlm-roberta")                      # classes that number SentencePiece's pieces anew
UNSUPPORTED = ("mbart", "camembert", "marian", "m2m", "nllb", "pegasus", "xlnet", "albert", "deberta")
EXTRA_IDS = 100                                             # of T5: <extra_id_0> to <extra_id_99>

Made = tuple[tokenizers.Tokenizer, dict[str, str]]          # (tokenizer, its special tokens by role)


def word_pieces(file: Path, text: str, settings: dict[str, Any]) -> Made:
    """BERT's tokenizer from a vocab.txt: one token a line."""
    vocabulary = {token: i for i, token in enumerate(text.removesuffix("\n").replace("\r\n", "\n").split("\n"))}
    roles = {role: token for role, token in BERT.items() if token in vocabulary} | named(settings)
    if roles.get("unk_token") not in vocabulary:
        raise UserError(f"{file} has no unknown token such as [UNK], so it is not a vocabulary of word pieces; give a "
                        f"tokenizer.json")
    rust = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=roles["unk_token"],
                                                 max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=settings.get("tokenize_chinese_chars", True) is not False,
        strip_accents=settings.get("strip_accents"), lowercase=settings.get("do_lower_case", True) is not False)
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    if {roles.get("cls_token"), roles.get("sep_token")} <= vocabulary.keys():
        rust = frames.framed(rust, roles["cls_token"], roles["sep_token"])
    return rust, roles


def byte_pairs(file: Path, text: str, settings: dict[str, Any]) -> Made:
    """GPT-2's or RoBERTa's tokenizer from a vocab.json, with merges.txt beside it."""
    merges_file = file.with_name("merges.txt")
    try:
        lines = merges_file.read_bytes().decode("utf-8-sig").splitlines()
        merges = [(first, second) for first, second in (
            line.split(" ") for line in lines if line.strip() and not line.startswith("#version"))]
        vocabulary = parse_json(text)
        rust = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    except OSError as error:
        raise UserError(f"cannot read {merges_file}: {error.strerror}; {file.name} needs it beside it") from None
    except Exception as error:                              # the library raises nothing narrower
        raise UserError(f"{file} and {merges_file.name} are not a vocabulary of byte pairs: {error}; give a "
                        f"tokenizer.json") from None
    if any(token.endswith("</w>") for token in vocabulary):
        raise UserError(f"{file} has tokens that end in </w>, which are not byte pairs of GPT-2's kind; give a "
                        f"tokenizer.json")
    roberta = {"<s>", "</s>", "<mask>"} <= vocabulary.keys()
    roles = {role: token for role, token in (ROBERTA if roberta else GPT2).items() if token in vocabulary}
    roles |= named(settings)
    prefix = settings.get("add_prefix_space") is True
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    rust.decoder = decoders.ByteLevel()
    if roberta:
        last, first = ((roles[role], vocabulary[roles[role]]) for role in ("sep_token", "cls_token"))
        rust.post_processor = processors.RobertaProcessing(last, first, trim_offsets=True, add_prefix_space=prefix)
    return rust, roles


def pieces(file: Path, kind: str, settings: dict[str, Any]) -> Made:
    """LLaMA's, T5's or XLM-RoBERTa's tokenizer from a SentencePiece model.

    kind    the class of the tokenizer and the type of the model, such as LlamaTokenizer or t5; "": by the algorithm
    """
    kind = kind.lower()
    if any(name in kind for name in UNSUPPORTED):
        raise UserError(f"the tokenizer of this kind of model ({kind.strip()}) cannot be made from {file.name}; save "
                        f"its tokenizer.json with transformers")
    parts = sentencepiece.read(file)
    unigram, roles = parts.trainer.get(3, sentencepiece.UNIGRAM) == sentencepiece.UNIGRAM, parts.roles
    if any(name in kind for name in OFFSET):
        roles = ROBERTA
        first = [("<s>", 0.0, 3), ("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
        parts = parts._replace(pieces=Pieces.of([*first, *[*parts.pieces][3:], ("<mask>", 0.0, 3)]))
    roles = roles | named(settings)
    rust = sentencepiece.tokenizer_of(parts)
    before = "bos_token" if roles == ROBERTA or not unigram else None
    last = "eos_token" if unigram else None
    if "t5" in kind:
        rust.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(EXTRA_IDS))])
    return frames.framed(rust, roles.get(before or ""), roles.get(last or "")), roles


def named(settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens that the settings name, by role."""
    tokens = {role: token.get("content") if isinstance(token, dict) else token for role, token in settings.items()
              if role.endswith("_token") and not role.startswith("add_")}
    return {role: token for role, token in tokens.items() if isinstance(token, str)}


def with_added(rust: tokenizers.Tokenizer, settings: dict[str, Any], added: dict[str, Any],
               roles: dict[str, str]) -> tokenizers.Tokenizer:
    """The tokenizer with the tokens of tokenizer_config.json or added_tokens.json, under the ids that these give.

    A token with a role is special.  Raises UserError if a token cannot have its id.
    """
    stored = settings.get("added_tokens_decoder")
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    tokens = {int(i): tokenizers.AddedToken(entry["content"], special=bool(entry.get("special")),
                                            **{flag: bool(entry.get(flag)) for flag in flags})
              for i, entry in stored.items()} if isinstance(stored, dict) else \
        {i: tokenizers.AddedToken(text, normalized=False, special=text in roles.values()) for text, i in added.items()}
    for i in sorted(tokens):
        token = tokens[i]
        (rust.add_special_tokens if token.special else rust.add_tokens)([token])
        if rust.token_to_id(token.content) != i:
            raise UserError(f"the token {token.content!r} has the id {i} in the files beside the tokenizer, but the "
                            f"vocabulary gives it {rust.token_to_id(token.content)}; give a tokenizer.json")
    present = [text for text in dict.fromkeys(roles.values()) if rust.token_to_id(text) is not None]
    known = {token.content for token in rust.get_added_tokens_decoder().values()}
    rust.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True, lstrip=text == "<mask>")
                             for text in present if text not in known])
    return rust
