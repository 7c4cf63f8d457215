"""Models to begin with, where none is trained yet: their shape, small if not told, and a tokenizer from texts."""
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama import params
from pyllama.errors import UserError
from pyllama.formats import vectors
from pyllama.models import bart, bert, gpt2, llama, lstm, transformer
from pyllama.text.tokenizer import Tokenizer

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")                          # in the order of their ids
WIDTH, LAYERS, HEADS = 128, 2, 4
ARCHITECTURES = ("lstm", "bert", "llama", "gpt2", "transformer", "bart")


def tokenizer(texts: Iterable[str], vocab_size: int, own: Sequence[str] = (), alone: str = "") -> Tokenizer:
    """Byte pairs, after the special tokens and the task's own; `alone` as Tokenizer.byte_pairs() has it."""
    return Tokenizer.byte_pairs(texts, vocab_size, (*SPECIAL, *own), alone)


def word_tokenizer(texts: Iterable[str], vocab_size: int, own: Sequence[str] = ()) -> Tokenizer:
    return Tokenizer.words(texts, vocab_size, (*SPECIAL, *own))


def special(tokenizer: Tokenizer) -> tuple[int, int | None, int | None]:
    """(padding, start, end) of a tokenizer that was made elsewhere."""
    pad = tokenizer.rust.token_to_id(SPECIAL[PAD])
    return PAD if pad is None else pad, tokenizer.bos_id, tokenizer.eos_id


def configuration(arch: str, vocab_size: int, context: int, head: str, dropout: float,
                  special: tuple[int, int | None, int | None] = (PAD, BOS, EOS), *, width: int = WIDTH,
                  layers: int = LAYERS, heads: int = HEADS, hidden: int | None = None):
    """About a million parameters unless told otherwise, most of them the table of tokens.

    width      D          hidden     F, the width inside the feed-forward; None: 4 D, of a LLaMA 8/3 D
    layers     L          heads      H
    Raises UserError if there is no such model, or the tokenizer has no end of a text and the model needs one.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"there is no trained model at {arch}, nor is it one of {', '.join(ARCHITECTURES)}, which "
                        f"begin from scratch; name one of these, or a folder")
    pad, start, end = special
    if end is None and arch in ("transformer", "bart"):
        raise UserError(f"the tokenizer has no token that ends a text, so that no {arch} would know where to stop; "
                        f"give one that has, or leave --tokenizer out")
    ends = {"bos_token_id": start, "eos_token_id": end}
    classes = {"vocab_size": vocab_size, "head": head}
    one = {**classes, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
           "max_position_embeddings": context}
    wide, gated = (4 * width, -(-width * 8 // 96) * 32) if hidden is None else (hidden, hidden)
    pair = {"vocab_size": vocab_size, "d_model": width, "encoder_layers": layers, "decoder_layers": layers,
            "encoder_attention_heads": heads, "decoder_attention_heads": heads, "encoder_ffn_dim": wide,
            "decoder_ffn_dim": wide, "max_position_embeddings": context, "dropout": dropout, "pad_token_id": pad,
            "decoder_start_token_id": end if start is None else start, **ends}
    shapes = {
        "lstm": (lstm.LstmConfig, {**classes, "embedding_dim": width, "hidden_size": width, "dropout": dropout}),
        "bert": (bert.BertConfig, {**one, "intermediate_size": wide, "hidden_dropout_prob": dropout}),
        "llama": (llama.LlamaConfig, {**one, "intermediate_size": gated, "resid_pdrop": dropout, **ends}),
        "gpt2": (gpt2.GPT2Config, {"vocab_size": vocab_size, "n_embd": width, "n_layer": layers, "n_head": heads,
                                   "n_inner": hidden, "n_positions": context, "resid_pdrop": dropout,
                                   "embd_pdrop": dropout, **ends}),
        "transformer": (transformer.TransformerConfig, {**pair, "norm_first": True}),
        "bart": (bart.BartConfig, {**pair, **classes, "norm_first": True, "init_std": None, "scale_embedding": True}),
    }
    made: Any
    made, fields = shapes[arch]
    return made.from_dict(fields)


class Vectors(NamedTuple):
    """Word vectors of a tokenizer's tokens."""
    ids: list[int]
    rows: np.ndarray                                        # [N D], one for each of the ids


def read_vectors(path: Path, tokenizer: Tokenizer) -> Vectors:
    """Of the tokens that stand for a word of the file, or for one but for its capitals.  UserError if there is none."""
    texts = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]
    words, rows = vectors.read(path, {form for text in texts for form in (text, text.lower())} - {""})
    place = {word: i for i, word in enumerate(words)}
    found = {i: place.get(text, place.get(text.lower())) for i, text in enumerate(texts) if text}
    known = {i: row for i, row in found.items() if row is not None}
    if not known:
        raise UserError(f"{path} has no vector for any token of the texts; give vectors of their language")
    return Vectors(list(known), rows[list(known.values())])


def heads_for(width: int) -> int:
    """The most heads, at most HEADS, of an even width.  UserError if there is none."""
    if width % 2:
        raise UserError(f"vectors of {width} numbers cannot be cut into heads of even width; give others, or take "
                        f"--model lstm, which has no heads")
    return next(heads for heads in range(HEADS, 0, -1) if width % (2 * heads) == 0)


def place_vectors(p, config, found: Vectors) -> None:
    """Write them into the model's table of tokens, the first of its leaves with a row for each."""
    table = next(leaf for _, leaf in params.leaves(p) if leaf.shape == (config.vocab_size, found.rows.shape[1]))
    table[found.ids] = found.rows
