"""Train in a process that is stopped at random moments, most often killed, and resumed by the next one.

    python -m tests.training_and_dying RUN TEXT KILLS SEED

The processes are forks of this one, which spares their start-up and their imports.  Before each stop this one tries to
get the lock.  The last process lives for three steps more.  Prints the step it comes to, and how often this process was
refused.
"""
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from pyllama import cli
from pyllama.cli import loading, running, sample  # noqa: F401 -- what the commands import first
from pyllama.errors import UserError
from pyllama.training import checkpoint
from pyllama.training.lock import RunLock

NEVER = "1000000"
STOPS = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]
FLAGS = ["--tokenizer", "byte", "--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2",
         "--block_size", "8", "--dropout", "0.1", "--warmup_iters", "3", "--lr_decay_iters", NEVER, "--save_steps", "1",
         "--eval_interval", "7", "--eval_tokens", "16", "--shards", "1", "--log_interval", NEVER]


def command(run: Path, text: Path) -> list[str]:
    """What a person would type: train, or resume if there is something to go on with."""
    if (run / "latest").exists():
        return ["resume", str(run), "--log_steps", NEVER]
    return ["train", "--data", str(text), "--out_dir", str(run), "--max_iters", NEVER, *FLAGS]


def refused(run: Path, owner: int) -> bool:
    """Does the process have the run's lock?  Then this one is refused."""
    try:
        if json.loads((run / "lock").read_text())["pid"] != owner:
            return False
    except (OSError, ValueError):
        return False
    try:
        RunLock(run)
    except UserError as error:
        return str(error).startswith(f"process {owner} on ")
    sys.exit("two processes have the lock")


def life(argv: list[str]) -> int:
    """The process id of the command in a process of its own."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(cli.main(argv))
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    return child


def end_of(child: int) -> int:
    """Its exit code, or -n if signal n ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(run: Path, text: Path, kills: int, seed: int) -> None:
    draw, refusals, count = random.Random(seed), 0, 0
    while count < kills or not refusals or not (run / "latest").exists():     # on a slow machine lives may be too short
        child, number = life(command(run, text)), draw.choice(STOPS)
        time.sleep(draw.uniform(0, 0.1) if count < kills else 1)
        refusals += refused(run, child)
        os.kill(child, number)
        if (code := end_of(child)) not in (-number, 128 + number):
            sys.exit(f"a process ended with {code} before signal {number}")
        count += 1
    end = checkpoint.load(run).step + 3
    if code := end_of(life(["resume", str(run), "--max_steps", str(end)])):
        sys.exit(f"the last process ended with {code}")
    print(end, refusals)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
