"""The parts shared by train, resume and finetune: checks, the loop that Ctrl-C stops, the last line of output."""
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

from pyllama import memory
from pyllama.cli.display import follow, interruptible
from pyllama.cli.output import console
from pyllama.errors import UserError
from pyllama.training.run import Plan, run


def check_log_steps(log_steps: int, sample_tokens: int = 0) -> None:
    """Raise UserError if log_steps is not positive, or sample_tokens is negative."""
    if log_steps < 1:
        raise UserError(f"log_steps is {log_steps}; it must be at least 1")
    if sample_tokens < 0:
        raise UserError(f"sample_tokens is {sample_tokens}; it must be at least 0")


def show_run(plan: Plan, log_steps: int, sample: Callable[[], str] = str) -> int:
    """Run the plan with a progress display.  sample() gives a line to show after an evaluation, or "".

    Returns 0, or the exit code if a signal, here or in another process, stopped the run early: 128 + its number.
    """
    state, last_step, comm = plan.state, plan.settings.max_steps, plan.comm
    for note in plan.notes:
        console.print(note)

    def stop() -> None:
        comm.stop = True

    records = run(*plan)
    comm.stop = False
    with interruptible(stop) as signals, contextlib.closing(records):
        for _ in follow(records, state.step, last_step, log_steps, sample):
            if comm.stopped or (comm.stop and comm.size == 1):          # processes must stop after the same step
                break
    comm.stop = False
    early = state.step < last_step or plan.best_so_far.pending
    return 128 + (signals or [signal.SIGINT])[0] if early and (signals or comm.stopped) else 0


def show_end(*sentences: str, then: str) -> None:
    """Print a run's last line: the sentences, the peak memory, the next command."""
    peak = f"peak memory {memory.peak_rss() / 2 ** 20:,.0f} MiB"
    console.print("; ".join([*filter(None, sentences), peak, then]))


def show_stop(step: int, folder: Path | None, *sentences: str) -> None:
    """Print the last line of a run that was stopped early."""
    show_end(f"stopped at step {step}", *sentences, then=f"continue with `pyllama resume {folder}`")
