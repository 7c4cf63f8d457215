"""Measure what each part costs that the textbooks' picture of attention leaves out: a table and a plot.

    python -m bench.textbook --data TEXT [--steps 500] [--out textbook.png]

All models read the same windows of characters in the same order, with the same width and settings.
"""
import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from pyllama.models.llama import LlamaConfig
from pyllama.models.textbook import TextbookConfig
from pyllama.text import corpus
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import joined, split
from pyllama.training import loop

D, F, T = 128, 512, 64


def variants(V):
    """{name: configuration}: the picture as drawn, with each part alone, with all but one, with all three; LLaMA."""
    parts = ("positions", "norm", "residual")
    plain = TextbookConfig(vocab_size=V, hidden_size=D, intermediate_size=F, max_position_embeddings=T)
    every = replace(plain, **dict.fromkeys(parts, True))
    llama = LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=352, num_attention_heads=4, num_hidden_layers=1,
                        rms_norm_eps=1e-5)
    return {"as drawn": plain, **{f"+ {part}": replace(plain, **{part: True}) for part in parts},
            **{f"all but {part}": replace(every, **{part: False}) for part in parts}, "all three": every,
            "LLaMA, 1 layer": llama, "LLaMA, 4 layers": replace(llama, num_hidden_layers=4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a text file, or python-docs")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("textbook.png"))
    options = parser.parse_args()
    texts = [text for _, text in corpus.documents(options.data)]
    tokenizer = Tokenizer.characters("".join(texts))
    training, held_out = split(joined(tokenizer.encode_batch(texts)), 0.1, block_size=T)
    settings = loop.Settings(batch_size=16, block_size=T, max_steps=options.steps, learning_rate=2e-3,
                              warmup_steps=options.steps // 10)
    curves, table = {}, Table("model", "parameters", "validation loss", "worse than LLaMA by", "seconds", box=SIMPLE)
    results = {}
    for name, config in variants(tokenizer.vocab_size).items():
        state = loop.start(config, settings)
        records = list(loop.train(state, training, settings))
        curves[name] = [record.loss for record in records]
        results[name] = (state.flat.size, loop.evaluate(state, held_out, settings, most=20000).loss,
                         sum(record.seconds for record in records))
        print(f"{name}: {results[name][1]:.4f}", file=sys.stderr)
    best = results["LLaMA, 1 layer"][1]
    for name, (size, loss, seconds) in results.items():
        table.add_row(name, f"{size:,}", f"{loss:.4f}", f"{loss - best:+.4f}", f"{seconds:.0f}")
    Console().print(table)
    draw(curves, options.out)


def draw(curves, path):
    """Plot each model's loss, averaged over twentieths of the run."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, losses in curves.items():
        width = max(1, len(losses) // 20)
        means = [sum(losses[i:i + width]) / width for i in range(0, len(losses) - width + 1, width)]
        axes.plot([width * (i + 0.5) for i in range(len(means))], means, label=name,
                  linestyle="--" if name.startswith("all but") else "-")
    axes.set(xlabel="step", ylabel="loss, nats a character")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
