"""Train in a process that is killed at random moments and resumed by the next one.

    python -m tests.training_and_dying RUN TEXT KILLS SEED

The processes are forks of this one, which spares their start-up.  The last one is let live for three steps more; prints
the step it comes to.
"""
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from pyllama import cli
from pyllama.training import checkpoint

NEVER = "1000000"
FLAGS = ["--tokenizer", "byte", "--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2",
         "--block_size", "8", "--dropout", "0.1", "--warmup_iters", "3", "--lr_decay_iters", NEVER, "--save_steps", "1",
         "--eval_interval", "7", "--eval_tokens", "16", "--shards", "1", "--log_interval", NEVER]


def command(run: Path, text: Path) -> list[str]:
    """What a person would type: train, or resume if there is something to go on with."""
    if (run / "latest").exists():
        return ["resume", str(run), "--log_steps", NEVER]
    return ["train", "--data", str(text), "--out_dir", str(run), "--max_iters", NEVER, *FLAGS]


def life(argv: list[str], seconds: float | None = None) -> int | None:
    """The exit code of the command in a process of its own, or None if it was killed after so many seconds."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(cli.main(argv))
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def main(run: Path, text: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(kills):
        if (code := life(command(run, text), draw.uniform(0, 0.2))) is not None:
            sys.exit(f"a life ended with {code} before it was killed")
    while not (run / "latest").exists():                        # on a slow machine no life was long enough
        life(command(run, text), 1)
    end = checkpoint.load(run).step + 3
    if code := life(["resume", str(run), "--max_steps", str(end)]):
        sys.exit(f"the last life ended with {code}")
    print(end)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
