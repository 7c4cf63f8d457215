"""The parts shared by train, resume and finetune: checks, the loop that Ctrl-C stops, the last line of output."""
import contextlib
import signal
from pathlib import Path

from pyllama import memory
from pyllama.cli.display import follow, interruptible
from pyllama.cli.output import console
from pyllama.errors import UserError
from pyllama.training.run import Plan, run

STOPPED = 128 + signal.SIGINT                               # the exit code after Ctrl-C


def check_log_steps(log_steps: int) -> None:
    """Raise UserError if log_steps is not positive."""
    if log_steps < 1:
        raise UserError(f"log_steps is {log_steps}; it must be at least 1")


def show_run(plan: Plan, log_steps: int) -> bool:
    """Run the plan with a progress display.  True if Ctrl-C, here or in another process, stopped it early."""
    state, last_step, comm = plan.state, plan.settings.max_steps, plan.comm
    for note in plan.notes:
        console.print(note)
    records = run(*plan)
    with interruptible() as interrupt, contextlib.closing(records):
        for _ in follow(records, state.step, last_step, log_steps):
            comm.stop = interrupt.is_set()
            if comm.stopped or (comm.stop and comm.size == 1):          # processes must stop after the same step
                break
    return (interrupt.is_set() or comm.stopped) and state.step < last_step


def show_end(*sentences: str, stopped_in: Path | None = None, then: str = "") -> int:
    """Print a run's last line: the sentences, the peak memory, the next command.  Returns the exit code."""
    if stopped_in:
        then = f"continue with `pyllama resume {stopped_in}`"
    peak = f"peak memory {memory.peak_rss() / 2 ** 20:,.0f} MiB"
    console.print("; ".join([*filter(None, sentences), peak, then]))
    return STOPPED if stopped_in else 0
