"""The command inspect: what a model is, how its parameters are stored, what its tokenizer does."""
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from pyllama import params, pretrained
from pyllama.cli.output import console, emit
from pyllama.errors import counted
from pyllama.models.sharing import spelled
from pyllama.text import special
from pyllama.text.chat_template import template_of
from pyllama.text.tokenizer import Tokenizer

SIZES = {"num_hidden_layers": "layer", "num_attention_heads": "head", "encoder_layers": "encoder layer",
         "decoder_layers": "decoder layer"}
UNEVEN_PARTS = {"num_key_value_heads_by_layer": "key/value head", "intermediate_size_by_layer": "channel"}


def inspect(model: Path, /, tensors: bool = False) -> int:
    """Describe a model: its family and size, how its parameters are stored, its tokenizer.

    Args:
        model: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        tensors: list the parameters, too, each with its shape and its type
    """
    loaded = pretrained.load(model, allow_nan=True)             # a damaged model is to be looked at, too
    leaves = dict(params.leaves(loaded.params))
    if tensors:
        for name, a in leaves.items():
            emit(f"{name}\t{' x '.join(map(str, a.shape))}\t{kind_of(a)}")
        return 0
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for title, text in {"model": family(loaded.config), "parameters": stored(leaves),
                        "tokenizer": described(loaded.tokenizer)}.items():
        table.add_row(title, text)
    for note in loaded.notes:
        table.add_row("note", note)
    console.print(table, soft_wrap=False)
    return 0


def family(config: Any) -> str:
    """llama, head lm; 12 layers, 16 heads, width 1,024; context 2,048"""
    sizes = [counted(getattr(config, name), noun) for name, noun in SIZES.items() if getattr(config, name, None)]
    if getattr(config, "groups", None) not in (None, getattr(config, "num_attention_heads", None)):
        sizes.append(f"{config.groups:,} of keys and values")
    context = f"; context {counted(config.context, 'token')}" if config.context else ""
    widths = [f"width {config.hidden_size:,}", *shared(config)]
    return f"{config.TYPE}, head {config.head}; {', '.join([*sizes, *widths])}{context}"


def shared(config: Any) -> Iterator[str]:
    """"weights of 2 layers, in the order 1,2,1,2", "20 to 64 channels in a layer"; or nothing"""
    share = getattr(config, "share_layers", 1)
    if isinstance(share, list):
        yield f"weights of {counted(max(share), 'layer')}, in the order {spelled(share)}"
    elif share != 1:
        yield f"{counted(share, 'layer')} in a row share weights"
    if config.shares and config.factor:
        yield f"token embeddings of width {config.factor:,}"
    if ranks := getattr(config, "ranks_by_layer", None):
        pairs = sum(rank > 0 for of_layers in ranks.values() for rank in of_layers)
        yield f"{counted(pairs, 'pair')} of factors for matrices"
    for field, noun in UNEVEN_PARTS.items():
        if sizes := getattr(config, field, None):
            yield f"{min(sizes):,} to {counted(max(sizes), noun)} in a layer"


def kind_of(a: Any) -> str:
    """float32, or the storage format of an encoded matrix"""
    return getattr(a, "kind", None) or str(a.dtype)


def stored(leaves: dict[str, Any]) -> str:
    """260,032 in 0.3 MB; 47 arrays: 36 in q8_0, 11 in float32"""
    kinds = Counter(map(kind_of, leaves.values()))
    size, total = (sum(getattr(a, what) for a in leaves.values()) for what in ("size", "nbytes"))
    parts = ", ".join(f"{count} in {kind}" for kind, count in kinds.most_common())
    return f"{size:,} in {total / 1e6:,.1f} MB; {counted(len(leaves), 'array')}: {parts}"


def described(tokenizer: Tokenizer | None) -> str:
    """512 tokens; texts begin with <s>; the end is </s>; no chat template"""
    if tokenizer is None:
        return "none"
    around, end = special.around(tokenizer), tokenizer.special_token("eos_token")
    before, behind = ("".join(tokenizer.rust.id_to_token(i) or str(i) for i in ids) for ids in around)
    parts = [counted(tokenizer.vocab_size, "token"), *([f"texts begin with {before}"] if before else []),
             *([f"texts end with {behind}"] if behind else []), f"the end token is {end}" if end else "no end token",
             "a chat template" if template_of(tokenizer) else "no chat template"]
    return "; ".join(parts)
