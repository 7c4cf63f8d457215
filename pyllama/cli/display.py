"""The progress display of a run: loss, speed and remaining time, and a line for each evaluation."""
import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pyllama import backend
from pyllama.cli.output import console
from pyllama.training.loop import Record

SMOOTH = 0.05                                               # weight of the newest step in the displayed loss and speed


def announce(summary: str) -> None:
    """Print the first line of a run, after the reason why the C kernels are missing, if they are."""
    if backend.cpu is None:
        console.print(f"no C kernels: {backend.why_no_cpu}")
    console.print(summary)


def follow(records: Iterable[Record], done: int, total: int, log_steps: int) -> Iterator[Record]:
    """Yield the records while displaying them: a progress bar on a terminal, else a line every log_steps steps."""
    loss = seconds = None
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
                   console=console, disable=not console.is_terminal, speed_estimate_period=120)
    with bar:
        task = bar.add_task("starting", total=total, completed=done, speed="")
        for record in records:
            loss = record.loss if loss is None else (1 - SMOOTH) * loss + SMOOTH * record.loss
            seconds = record.seconds if seconds is None else (1 - SMOOTH) * seconds + SMOOTH * record.seconds
            speed = f"{record.tokens / seconds:,.0f} tokens/s"
            bar.update(task, completed=record.step, description=f"loss {loss:.3f}, step", speed=speed)
            if record.evaluation:
                console.print(f"step {record.step:>6}   loss {loss:.4f}   validation {record.evaluation.loss:.4f}   "
                              f"{record.evaluation}   {speed}")
            elif not console.is_terminal and record.step % log_steps == 0:
                left = (total - record.step) * seconds
                console.print(f"step {record.step:>6}   loss {loss:.4f}   lr {record.lr:.2e}   "
                              f"gradient {record.grad_norm:.3f}   {speed}   ETA {left:.0f} s")
            yield record


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C or SIGTERM.  The second one raises KeyboardInterrupt."""
    interrupt = threading.Event()

    def handle(number, frame):
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()
        console.print("stopping after this step and saving; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
