"""Does a teacher help?  A small model trains with its teacher and alone, from the same weights, on the same batches.

    python -m bench.distilling --data FOLDER [--teacher FILE --tokenizer FILE] [--seeds 5] [--only text|sentiment]

Text: the teacher is llama2.c's stories260K (260,000 parameters), FOLDER/lm_en_tinystories.txt the text; the student
has one of its five layers, 78,000 parameters.  Sentiment: the teacher is MiniLM (22.7 million parameters), fine-tuned
as in bench/minilm.py, FOLDER/cls_sentiment_{train,dev}.jsonl the rows; the student has two of its six layers and its
table as two factors, 7.4 million parameters.  Both runs also read fragments of the rows, which have the row's label,
and the teacher's own scores (Tang et al., 2019, section 3.2.2); a third run is alone and reads the rows as they are,
in as many passes as take about as long.  A seed sets the new weights and the batches of the runs of it.
"""
import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.minilm import FLAGS, TEST, TRAIN, Missing, weights
from bench.rotation import ROOT
from bench.table import show
from pyllama import files
from pyllama.cli.main import main as pyllama

SHARED = ROOT.parent / "shared"
TEXT = "lm_en_tinystories.txt"
OF_TEXT = ["--num_hidden_layers", "1", "--block_size", "64", "--batch_size", "16", "--max_steps", "450", "--eval_steps",
           "150", "--learning_rate", "3e-3", "--sample_tokens", "0"]
# The last step is the only one evaluated: validation rows have fragments among the training rows, and choose nothing.
OF_ROWS = ["--num_hidden_layers", "2", "--copy_layers", "--embedding_size", "112", "--batch_size", "64",
           "--learning_rate", "3e-4", "--max_length", "48", "--validation", "0.02", "--eval_steps", "100000",
           "--dtype", "bfloat16"]
EPOCHS, EPOCHS_OF_ROWS = ["--epochs", "3"], ["--epochs", "5"]       # with fragments, and without
FRAGMENTS, SHORTEST, LONGEST = 2, 3, 8          # fragments of a row, and their words
ALONE = ["--alpha", "1"]
WITH = {"text": ["--alpha", "0", "--temperature", "1"], "sentiment": ["--alpha", "0", "--temperature", "2"]}
RUNS = {"": "{what}", "seed": "{seed}", "alone": "{alone:.4f}", "on whole rows": "{whole:.4f}",
        "with the teacher": "{taught:.4f}"}
SUMMARY = {"": "{what}", "teacher": "{teacher:.4f}", "alone": "{alone:.4f}", "on whole rows": "{whole:.4f}",
           "with it": "{taught:.4f}",
           "difference": "{difference:+.4f}", "standard error": "{error:.4f}", "better in": "{better} of {seeds}"}


def run(words: list) -> None:
    """Run a command.  Raises ChildProcessError if it fails."""
    if code := pyllama([str(word) for word in words]):
        raise ChildProcessError(f"{words[0]} ended with status {code}")


def loss(folder: Path) -> float:
    """The lowest validation loss of a run on a text."""
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return min(line["val_loss"] for line in lines if line.get("val_loss") is not None)


def accuracy(folder: Path) -> float:
    """The accuracy of a run on the test rows."""
    return files.read_json(folder / "metrics.json")["accuracy"]


def measures(what: str, common: list, ways: dict, seeds: int, folder: Path, measured) -> list:
    """[{what, seed, alone, taught, whole}, ...]: the measure of the runs of each seed, by the name of their way."""
    rows: list = [{"what": what, "seed": seed, "whole": None} for seed in range(seeds)]
    for name, flags in ways.items():
        for row in rows:
            out = folder / f"{what}-{row['seed']}-{name}"
            run(["distill", *common, *flags, "--seed", row["seed"], "--out_dir", out])
            row[name] = measured(out)
            shutil.rmtree(out)
    return rows


def summary(rows: list, teacher: float, sign: int) -> dict:
    """The means of the rows.  sign: 1 if more is better, else -1."""
    differences = [row["taught"] - row["alone"] for row in rows]
    return {"what": rows[0]["what"], "teacher": teacher, "seeds": len(rows),
            "alone": statistics.mean(row["alone"] for row in rows),
            "taught": statistics.mean(row["taught"] for row in rows),
            "difference": statistics.mean(differences), "better": sum(sign * d > 0 for d in differences),
            "whole": None if rows[0]["whole"] is None else statistics.mean(row["whole"] for row in rows),
            "error": statistics.stdev(differences) / len(rows) ** 0.5 if len(rows) > 1 else 0.0}


def with_fragments(rows: Path, out: Path) -> Path:
    """Write the rows, and behind them fragments of each of them: consecutive words, at random."""
    rng, whole = np.random.default_rng(0), [json.loads(line) for line in rows.read_text().splitlines()]
    found = []
    for row in whole:
        words = row["text"].split()
        for size in rng.integers(SHORTEST, LONGEST + 1, FRAGMENTS).tolist():
            if size < len(words):
                start = int(rng.integers(0, len(words) - size + 1))
                found.append({**row, "text": " ".join(words[start:start + size])})
    out.write_text("".join(f"{json.dumps(row)}\n" for row in whole + found))
    return out


def text(options, folder: Path) -> tuple[list, dict]:
    """On a text: (rows, summary).  The measure is the validation loss.  The teacher's is that of a run of no change."""
    common = [options.teacher, "--tokenizer", options.tokenizer, "--data", options.data / TEXT, *OF_TEXT]
    still = folder / "still"
    run(["distill", *common, "--num_hidden_layers", "5", "--copy_layers", *ALONE, "--max_steps", "1", "--learning_rate",
         "1e-12", "--out_dir", still])
    rows = measures("text", common, {"alone": ALONE, "taught": WITH["text"]}, options.seeds, folder, loss)
    return rows, summary(rows, loss(still), -1)


def sentiment(options, folder: Path) -> tuple[list, dict]:
    """On rows: (rows, summary).  The measure is the accuracy on the test rows."""
    teacher, test = options.classifier or folder / "minilm", ["--test_data", options.data / TEST]
    if not options.classifier:
        run(["finetune", "--task", "classify", "--model", weights(options.weights.absolute()), "--data",
             options.data / TRAIN, *test, *FLAGS, "--dtype", "bfloat16", "--out_dir", teacher])
    rows = with_fragments(options.data / TRAIN, folder / "rows.jsonl")
    ways = {"taught": ["--data", rows, *EPOCHS, *WITH["sentiment"]], "alone": ["--data", rows, *EPOCHS, *ALONE],
            "whole": ["--data", options.data / TRAIN, *EPOCHS_OF_ROWS, *ALONE]}
    runs = measures("sentiment", [teacher, *test, *OF_ROWS], ways, options.seeds, folder, accuracy)
    return runs, summary(runs, accuracy(teacher), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data/quickstart")
    parser.add_argument("--teacher", type=Path, default=SHARED / "fixtures/stories260K/stories260K.bin")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "fixtures/stories260K/tok512.bin")
    parser.add_argument("--classifier", type=Path, help="a run that finetune has made of MiniLM (default: make one)")
    parser.add_argument("--weights", type=Path, default=ROOT / ".minilm", help="the environment of MiniLM's package")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("text", "sentiment"))
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for part in (text, sentiment):
            if options.only in (None, part.__name__):
                try:
                    found.append(part(options, Path(folder)))
                except (Missing, OSError) as reason:
                    print(f"skipped: {reason}")
    for rows, _ in found:
        show(RUNS, rows)
    show(SUMMARY, [means for _, means in found])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChildProcessError as error:
        sys.exit(f"bench/distilling.py: {error}")
