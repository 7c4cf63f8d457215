"""The command factorize: a model whose matrices are products of two smaller ones."""
from pathlib import Path

import numpy as np

from pyllama.cli.output import console
from pyllama.cli.prune import compare, plain_model, show_sizes
from pyllama.cli.quantize import HELD_OUT, sample_of
from pyllama.compression.factorizing import factorized
from pyllama.pretrained import Model


def factorize(src: Path, dst: Path, /, rank: float, data: tuple[str, ...] = (), field: str = "text",
              tokenizer: Path | None = None, force: bool = False) -> int:
    """Write a smaller model, in which matrices of the layers are products of two factors of low rank.

    The ranks are chosen for all matrices together.  With a text, what the matrices compute on it changes least; and the
    perplexity before and after is printed, on a fifth of the text that nothing else uses.  Without one, the matrices
    change least.  The model can be trained on: `pyllama train --init_from DST`.

    Args:
        src: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        dst: folder to write
        rank: share of the numbers in the layers' matrices that the factors may have, such as 0.5
        data: text to choose ranks and factors with: files, folders, patterns, "-" or "python-docs"
        field: field of a .jsonl file that holds the text
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
        force: replace a model in dst
    """
    model, its_tokenizer, tree = plain_model(src, dst, tokenizer, force)
    with sample_of(data, its_tokenizer, model, field, HELD_OUT) as sample:
        smaller = factorized(tree, model.config, rank, sample.rows if sample else None)
        made = Model(smaller.config, smaller.params, its_tokenizer, generation_config=model.generation_config)
        losses = [*smaller.losses.values()]
        of = "of their products" if sample else "of their numbers"
        console.print(f"{len(losses)} of the layers' {7 * model.config.num_hidden_layers} matrices have factors; mean "
                      f"squared error {of} {np.mean(losses):.2%}")
        show_sizes(tree, smaller.params)
        if sample:
            compare(model, tree, made, sample)
    made.save(dst)
    console.print(f"wrote {dst}")
    return 0
