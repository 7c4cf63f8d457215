"""The command prune: a model without the heads, channels and layers that matter least."""
import os
from pathlib import Path

import numpy as np

from pyllama import params
from pyllama.cli.loading import load
from pyllama.cli.output import console
from pyllama.cli.quantize import HELD_OUT, evaluated, sample_of
from pyllama.compression.parts import Kept, require_plain
from pyllama.compression.pruning import Pruned, Pruning, pruned
from pyllama.errors import UserError, counted
from pyllama.models.adapters import merged
from pyllama.pretrained import Model, require_unused
from pyllama.quantization import decoded_tree
from pyllama.quantization.sample import Sample
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint


def prune(src: Path, dst: Path, /, pruning: Pruning, data: tuple[str, ...] = (), field: str = "text",
          tokenizer: Path | None = None, force: bool = False) -> int:
    """Write a smaller model, without the heads, channels and layers that matter least.

    A key/value head leaves with its query heads.  With a text, the output matrices of the rest are refitted, so that
    they stand in for what left; and the perplexity before and after is printed, on a fifth of the text that nothing
    else uses.  The model can be trained on: `pyllama train --init_from DST`.

    Args:
        src: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        dst: folder to write
        data: text to compare and refit with: files, folders, patterns, "-" or "python-docs"
        field: field of a .jsonl file that holds the text
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
        force: replace a model in dst
    """
    model, its_tokenizer, tree = plain_model(src, dst, tokenizer, force)
    with sample_of(data, its_tokenizer, model, field, HELD_OUT) as sample:
        smaller = pruned(tree, model.config, pruning, sample.rows if sample else None)
        made = Model(smaller.config, smaller.params, its_tokenizer, generation_config=model.generation_config)
        describe(tree, smaller)
        if sample:
            compare(model, tree, made, sample)
    made.save(dst)
    console.print(f"wrote {dst}")
    return 0


def plain_model(src: Path, dst: Path, tokenizer: Path | None, force: bool) -> tuple[Model, Tokenizer, dict]:
    """(model, tokenizer, its parameters as plain arrays), of which a smaller model is written to dst.

    Raises UserError if the model has no such parts, or if dst is not a folder to write to.
    """
    require_new(src, dst, force)
    model, its_tokenizer = load(src, tokenizer)
    require_plain(model.config)
    return model, its_tokenizer, decoded_tree(merged(model.params, model.config))


def require_new(src: Path, dst: Path, force: bool) -> None:
    """Raise UserError if the folder is not one to write a model to."""
    if src.exists() and dst.exists() and os.path.samefile(src, dst):
        raise UserError(f"{src} and {dst} are the same folder, and the original is never replaced; give another name")
    if dst.suffix == ".gguf":
        raise UserError(f"{dst} would be a GGUF file, but a folder is written; name one, and quantize it afterwards")
    if (dst / checkpoint.CONFIG).exists() and not force:
        raise UserError(f"{dst} contains a model; give another folder, or --force to replace it")
    require_unused(dst)


def describe(tree: dict, smaller: Pruned) -> None:
    """Print what left, how large the rest is, and what refitting does."""
    console.print(what_left(smaller.kept))
    show_sizes(tree, smaller.params)
    if fits := smaller.fits.values():
        errors = [np.mean([getattr(fit, when) for fit in fits]) for when in ("before", "after")]
        console.print(f"refitted {len(fits)} output matrices: squared error of their products {errors[0]:.2%} before, "
                      f"{errors[1]:.2%} after")


def show_sizes(tree: dict, smaller: dict) -> None:
    """Print how many parameters there are."""
    before, after = (sum(a.size for _, a in params.leaves(each)) for each in (tree, smaller))
    console.print(f"{before:,} parameters before, {after:,} after: {after / before - 1:+.1%}; in float32 "
                  f"{before * 4 / 1e6:,.2f} MB before, {after * 4 / 1e6:,.2f} MB after")


def what_left(kept: Kept) -> str:
    """removed 1 of 5 layers; of the others 4 of 16 key/value heads and 300 of 688 channels"""
    stay = np.flatnonzero(kept.layers)
    heads, channels = (np.concatenate([masks[i] for i in stay]) for masks in (kept.heads, kept.channels))
    return f"removed {of_all(kept.layers, 'layer')}; of the others {of_all(heads, 'key/value head')} and " \
           f"{of_all(channels, 'channel')}"


def of_all(mask: np.ndarray, noun: str) -> str:
    """4 of 16 heads, where False is what left"""
    return f"{int((~mask).sum()):,} of {counted(mask.size, noun)}"


def compare(model: Model, tree: dict, made: Model, sample: Sample) -> None:
    """Print the perplexity of both on the tokens that are held out."""
    before, after = evaluated(tree, model, sample), evaluated(made.params, made, sample)
    console.print(f"perplexity {before.perplexity:.4g} before, {after.perplexity:.4g} after: "
                  f"{after.perplexity / before.perplexity - 1:+.2%}, over {counted(before.tokens, 'token')} held out")
