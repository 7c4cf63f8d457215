"""The quick start in little memory: the peak resident memory (VmHWM) of each of its commands, on one core.

    python -m bench.lean --data input.txt [--max_steps 2000] [--most 128] [-- FLAGS OF TRAIN]

The model and the batches are those of nanoGPT's quick start on a CPU: 4 layers, width 128, 64 characters at a time.
The program ends with status 1 if a command takes more than --most MiB.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.rotation import ROOT
from bench.table import show

TEXT = ROOT.parent / "shared/data/tinyshakespeare/input.txt"
RECIPE = ["--block_size", "64", "--batch_size", "12", "--n_layer", "4", "--n_head", "4", "--n_embd", "128",
          "--learning_rate", "3e-3"]
STEPS = {
    "import pyllama": [],
    "train": ["train", "--data", "{data}", "--out_dir", "{folder}/run", "--max_iters", "{max_steps}", *RECIPE],
    "resume": ["resume", "{folder}/run", "--max_steps", "{more}"],
    "quantize": ["quantize", "{folder}/run", "{folder}/model.gguf", "--dtype", "q4_0"],
    "generate": ["generate", "--model", "{folder}/model.gguf", "--prompt", "ROMEO:", "--max_new_tokens", "200"],
}
COLUMNS = {"": "{step}", "peak MiB": "{peak:.0f}", "seconds": "{seconds:.2f}"}
# The peak is read by the process itself: what a parent is told includes its own memory before the child's program runs.
PROGRAM = """
import sys, time
begin = time.perf_counter()
import pyllama
code = 0
if sys.argv[2:]:
    from pyllama.cli import main
    code = main(sys.argv[2:])
seconds = time.perf_counter() - begin
from bench.rotation import peak_rss
with open(sys.argv[1], "w") as file:
    print(peak_rss(), seconds, file=file)
sys.exit(code)
"""


def measured(words: list[str], folder: Path) -> dict:
    """Run a command in a process of its own; no words: import pyllama.    Returns {peak: MiB, seconds}.

    folder      for a temporary file
    Raises CalledProcessError if the command fails.
    """
    subprocess.run([sys.executable, "-c", PROGRAM, folder / "figures", *words], cwd=ROOT, check=True)
    peak, seconds = map(float, (folder / "figures").read_text().split())
    return {"peak": peak / 2 ** 20, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lean", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=TEXT, help="the text (default: %(default)s)")
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--most", type=float, default=128.0, help="MiB that a command may take (default: %(default)g)")
    parser.add_argument("flags", nargs="*", help="more flags of train, such as -- --micro_batch_size 3")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"skipped: there is no text at {options.data}; name one by --data")
        return 0
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})             # the children's, too
    with tempfile.TemporaryDirectory() as name:
        values = {"data": options.data.resolve(), "folder": name, "max_steps": options.max_steps,
                  "more": options.max_steps + 50}
        commands = {step: [word.format(**values) for word in words] for step, words in STEPS.items()}
        commands["train"] += options.flags
        rows = [{"step": step, **measured(words, Path(name))} for step, words in commands.items()]
    show(COLUMNS, rows)
    return int(any(row["peak"] > options.most for row in rows))


if __name__ == "__main__":
    sys.exit(main())
