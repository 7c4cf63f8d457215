"""What the commands that train have in common: the checks before it, the loop that Ctrl-C stops, the last line."""
import contextlib
import signal
from pathlib import Path

from pyllama import memory
from pyllama.cli.display import console, follow, interruptible
from pyllama.errors import UserError
from pyllama.training.run import Plan, run

STOPPED = 128 + signal.SIGINT                               # the exit code of what Ctrl-C ended


def check_log_steps(log_steps: int) -> None:
    if log_steps < 1:
        raise UserError(f"log_steps is {log_steps}; it must be at least 1")


def require_new(out_dir: Path) -> None:
    """Raises UserError if the folder holds a run."""
    if (out_dir / "latest").exists():
        raise UserError(f"{out_dir} holds a run already; go on with it by `pyllama resume {out_dir}`, or choose "
                        f"another --out_dir")


def show_run(plan: Plan, log_steps: int) -> bool:
    """Run the plan while showing it; was it stopped before its last step, by Ctrl-C here or in another process?"""
    state, last_step, comm = plan.state, plan.settings.max_steps, plan.comm
    records = run(*plan)
    with interruptible() as interrupt, contextlib.closing(records):
        for _ in follow(records, state.step, last_step, log_steps):
            comm.stop = interrupt.is_set()
            if comm.stopped or (comm.stop and comm.size == 1):          # several must stop after the same step
                break
    return (interrupt.is_set() or comm.stopped) and state.step < last_step


def show_end(*sentences: str, stopped_in: Path | None = None, then: str = "") -> int:
    """Print the last line of a run: these sentences, the memory it took, what to do next.  Returns the exit code."""
    if stopped_in:
        then = f"go on with `pyllama resume {stopped_in}`"
    peak = f"peak memory {memory.peak_rss() / 2 ** 20:,.0f} MiB"
    console.print("; ".join([*filter(None, sentences), peak, then]))
    return STOPPED if stopped_in else 0
