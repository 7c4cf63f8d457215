"""Does training in bfloat16 reach the validation loss of float32?  Each seed trains once in each precision.

    python -m bench.seeds --data input.txt [--sizes T Sp] [--steps 150 60] [--seeds 5] [--json]

The models are those of bench/train.py, with byte pairs learned from the text.  A seed sets the weights and the batches,
so the two runs of a seed begin alike and read alike, and their difference is what the precision does.  It is compared
with what another seed does: the spread of float32's losses.  A run in bfloat16 is evaluated in bfloat16, and its
weights again in float32.
"""
import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace

from rich.console import Console
from rich.progress import Progress

from bench.sizes import RULE, SIZES
from bench.table import show
from bench.train import rounded
from bench.train_pyllama import model_of
from pyllama import memory
from pyllama.text.tokens import prepare, split
from pyllama.training.loop import Settings, evaluate, start, train
from pyllama.training.text_run import Text, make_tokenizer

STEPS = {"T": 150, "Sp": 60}
RATE = 2e-3                                     # of few steps: of bench/train.py's 5e-4 they would learn little
PRECISIONS = "float32", "bfloat16"
RUNS = {"size": "{size}", "seed": "{seed}", "float32": "{float32:.4f}", "bfloat16": "{bfloat16:.4f}",
        "its weights in float32": "{weights:.4f}", "difference": "{difference:+.5f}"}
SUMMARY = {"size": "{size}", "steps": "{steps}", "seeds": "{seeds}", "mean of float32": "{float32:.4f}",
           "of bfloat16": "{bfloat16:.4f}", "difference": "{difference:+.5f}", "standard error": "{error:.5f}",
           "float32's least": "{least:.4f}", "largest": "{largest:.4f}", "deviation of a seed": "{deviation:.4f}",
           "within the spread": "{within}"}


def final_losses(size, tokens, steps, seed):
    """The validation losses {float32, bfloat16, weights: of the weights of the run in bfloat16, in float32}."""
    losses = {}
    for dtype in PRECISIONS:
        settings = Settings(batch_size=size.B, block_size=size.T, max_steps=steps, seed=seed, dtype=dtype,
                            **RULE | {"learning_rate": RATE})
        training, validation = split(tokens, 0.1, "position", seed, size.T)
        state = start(model_of(size), settings)
        for _ in train(state, training, settings):
            pass
        losses[dtype] = evaluate(state, validation, settings).loss
    wide = replace(settings, dtype="float32")
    return losses | {"weights": evaluate(start(state.config, wide, state.p), validation, wide).loss}


def summary(size, steps, runs):
    """A row on the runs of a size: is bfloat16's mean between the least and the largest loss of float32?"""
    of = {name: [run[name] for run in runs] for name in (*PRECISIONS, "difference")}
    means = {name: statistics.mean(values) for name, values in of.items()}
    least, largest = min(of["float32"]), max(of["float32"])
    return {"size": size, "steps": steps, "seeds": len(runs), **means, "least": least, "largest": largest,
            "deviation": statistics.stdev(of["float32"]),
            "error": statistics.stdev(of["difference"]) / len(runs) ** 0.5,
            "within": least <= means["bfloat16"] <= largest}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="files of text")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*STEPS])
    parser.add_argument("--steps", nargs="+", type=int, help="optimizer steps of each size")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    steps = options.steps or [STEPS.get(name, min(STEPS.values())) for name in options.sizes]
    if options.seeds < 2 or len(steps) != len(options.sizes):
        parser.error("give at least 2 seeds, and a number of steps for each size")
    memory.install()
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        for name, count in zip(options.sizes, steps, strict=True):
            size, task = SIZES[name], bar.add_task(name, total=options.seeds)
            tokenizer = make_tokenizer(Text(tuple(options.data), tokenizer="bpe", vocab_size=size.V), with_mask=False)
            runs = []
            with tempfile.TemporaryDirectory() as folder:
                tokens = prepare(options.data, tokenizer, folder)
            for seed in range(options.seeds):
                run = {"size": name, "seed": seed, **final_losses(size, tokens, count, seed)}
                runs.append(run | {"difference": run["bfloat16"] - run["float32"]})
                bar.advance(task)
            for columns, rows in ((RUNS, runs), (SUMMARY, [summary(name, count, runs)])):
                if options.json:
                    print(*(json.dumps(rounded(row)) for row in rows), sep="\n", flush=True)
                else:
                    show(columns, rows)


if __name__ == "__main__":
    main()
