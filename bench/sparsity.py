"""What does sparsity alone save?     python -m bench.sparsity --data input.txt [--steps 400] [--shares 0 0.5 0.9]

Trains the same small model with a growing share of zeros, each in a process of its own, by the command that a user
would type.  The bytes are those of the last checkpoint: of the model, of the model as gzip compresses it, and of the
optimizer's state.
"""
import argparse
import gzip
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.table import show
from pyllama.training import checkpoint
from pyllama.training.log import read_log

SHAPE = ["--num_hidden_layers", "4", "--hidden_size", "128", "--num_attention_heads", "4", "--block_size", "64",
         "--batch_size", "16", "--learning_rate", "3e-3", "--sample_tokens", "0"]
COLUMNS = {"sparsity": "{share:.0%}", "validation loss": "{loss:.4f}", "tokens/s": "{speed:,.0f}",
           "peak MiB": "{peak}", "model MB": "{model:.2f}", "gzipped MB": "{gzipped:.2f}",
           "optimizer MB": "{state:.2f}"}


def trained(data, steps, share, folder):
    """A row of the table: the run with this share of zeros."""
    words = ["train", "--data", *data, "--out_dir", str(folder), "--max_steps", str(steps), "--eval_steps", str(steps),
             "--save_steps", str(steps), *SHAPE]
    if share:
        words += ["--sparsity", str(share), "--sparsity_steps", str(steps // 2)]
    command = [sys.executable, "-m", "pyllama", *words]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    log, saved = read_log(folder), checkpoint.load(folder).folder
    speeds = [line["tokens"] / line["seconds"] for line in log]
    model, state = (saved / name for name in (checkpoint.MODEL, checkpoint.OPTIMIZER))
    return {"share": share, "loss": log[-1]["val_loss"], "speed": statistics.median(speeds),
            "peak": re.search(r"peak memory ([\d,]+)", output)[1], "model": model.stat().st_size / 1e6,
            "gzipped": len(gzip.compress(model.read_bytes())) / 1e6, "state": state.stat().st_size / 1e6}


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.sparsity")
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.5, 0.9])
    arguments = parser.parse_args()
    rows = []
    for share in arguments.shares:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(trained(arguments.data, arguments.steps, share, Path(folder, "run")))
    show(COLUMNS, rows)


if __name__ == "__main__":
    main()
