"""Small models to begin with, where none is trained yet: their shape, and a tokenizer learnt from the task's texts."""
from collections.abc import Iterable, Sequence
from typing import Any

from pyllama.errors import UserError
from pyllama.models import bart, bert, gpt2, llama, lstm, transformer
from pyllama.tokenizer import Tokenizer

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")                          # in the order of their ids
WIDTH, LAYERS, HEADS = 128, 2, 4
ARCHITECTURES = ("lstm", "bert", "llama", "gpt2", "transformer", "bart")


def tokenizer(texts: Iterable[str], vocab_size: int, own: Sequence[str] = (), alone: str = "") -> Tokenizer:
    """Byte pairs, after the special tokens and the task's own; `alone` as Tokenizer.byte_pairs() has it."""
    return Tokenizer.byte_pairs(texts, vocab_size, (*SPECIAL, *own), alone)


def special(tokenizer: Tokenizer) -> tuple[int, int | None, int | None]:
    """(padding, start, end) of a tokenizer that was made elsewhere."""
    pad = tokenizer.rust.token_to_id(SPECIAL[PAD])
    return PAD if pad is None else pad, tokenizer.bos_id, tokenizer.eos_id


def configuration(arch: str, vocab_size: int, context: int, head: str, dropout: float,
                  special: tuple[int, int | None, int | None] = (PAD, BOS, EOS)):
    """About a million parameters, most of them the table of tokens.

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
    one = {**classes, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
           "max_position_embeddings": context}
    pair = {"vocab_size": vocab_size, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
            "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": 4 * WIDTH,
            "decoder_ffn_dim": 4 * WIDTH, "max_position_embeddings": context, "dropout": dropout, "pad_token_id": pad,
            "decoder_start_token_id": end if start is None else start, **ends}
    shapes = {
        "lstm": (lstm.LstmConfig, {**classes, "embedding_dim": WIDTH, "hidden_size": WIDTH, "dropout": dropout}),
        "bert": (bert.BertConfig, {**one, "intermediate_size": 4 * WIDTH, "hidden_dropout_prob": dropout}),
        "llama": (llama.LlamaConfig, {**one, "intermediate_size": 352, "resid_pdrop": dropout, **ends}),
        "gpt2": (gpt2.GPT2Config, {"vocab_size": vocab_size, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
                                   "n_positions": context, "resid_pdrop": dropout, "embd_pdrop": dropout, **ends}),
        "transformer": (transformer.TransformerConfig, {**pair, "norm_first": True}),
        "bart": (bart.BartConfig, {**pair, **classes, "norm_first": True, "init_std": None, "scale_embedding": True}),
    }
    made: Any
    made, fields = shapes[arch]
    return made.from_dict(fields)
