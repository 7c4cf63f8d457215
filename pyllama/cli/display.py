"""What a person sees while a run goes on: a progress line with loss, speed and time left, and a line an evaluation."""
import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pyllama import backend
from pyllama.training.loop import Record

console = Console(highlight=False, soft_wrap=True, markup=False)         # what a user named may look like markup
SMOOTH = 0.05                                               # weight of the newest step in the loss and speed shown


def announce(summary: str) -> None:
    """The first line of a run; before it, why there are no C kernels if there are none."""
    if backend.cpu is None:
        console.print(f"no C kernels: {backend.why_no_cpu}")
    console.print(summary)


def follow(records: Iterable[Record], done: int, total: int, log_steps: int) -> Iterator[Record]:
    """Pass the records on, showing them: a moving line on a terminal, a line every log_steps elsewhere."""
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
    """An event that the first Ctrl-C, or SIGTERM, sets; a second one interrupts at once, without saving."""
    interrupt = threading.Event()

    def handle(number, frame):
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()
        console.print("stopping after this step and saving; once more to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
