"""The progress display of a run: loss, speed and remaining time, and a line for each evaluation."""
import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyllama import backend, params
from pyllama.cli.output import console
from pyllama.training.loop import Record

# The instruction sets that multiply in bfloat16, and by which instruction.
PRODUCTS = {"amx": "tdpbf16ps, tiles", "avx512bf16": "vdpbf16ps, pairs"}
SMOOTH = 0.05                                               # weight of the newest step in the displayed speed
QUIET = 30.0                                                # seconds without a line after which a step gets one
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def bfloat16() -> str:
    """What computes in bfloat16, and at what cost."""
    if not backend.cpu:
        return "NumPy, which is much slower in it than in float32"
    by = PRODUCTS.get(backend.cpu.isa)
    way = f"products by {by}" if by else "arithmetic of float32, which is no faster"
    return f"{way}; numbers take half the memory, with 8 significant bits"


def parameters_of(state) -> str:
    """The number of parameters, and of those that train if some do not."""
    whole = params.size(state.p)
    return f"{whole:,} parameters" + (f", {state.flat.size:,} of which train" if state.flat.size < whole else "")


def announce(summary: str, dtype: str = "float32") -> None:
    """Print the first line of a run in this precision.

    Lines before it say why the C kernels or the BLAS that is set are missing, and if bfloat16 gains no speed.
    """
    if backend.cpu is None:
        console.print(f"no C kernels: {backend.why_no_cpu}")
    if backend.why_no_blas:
        console.print(backend.why_no_blas)
    if dtype == "bfloat16" and (backend.cpu is None or backend.cpu.isa not in PRODUCTS):
        console.print(f"bfloat16 by {bfloat16()}")
    console.print(summary)


def follow(records: Iterable[Record], done: int, total: int, log_steps: int,
           sample: Callable[[], str] = str) -> Iterator[Record]:
    """Yield the records while displaying them, with a line for each evaluation, and a sample of text below it.

    A terminal has a progress bar.  Other outputs have a line for the first step, every log_steps steps, and whenever
    QUIET seconds have passed.  The loss is that of the step, as in the log.
    """
    seconds, shown = None, -math.inf
    bar = Progress(TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]}"), TextColumn("ETA"), TimeRemainingColumn(), expand=True,
                   console=console, disable=not console.is_terminal, speed_estimate_period=120)
    with bar:
        task = bar.add_task("starting", total=total, completed=done, speed="")
        for record in records:
            loss = "-" if math.isnan(record.loss) else f"{record.loss:.4f}"
            seconds = record.seconds if seconds is None else (1 - SMOOTH) * seconds + SMOOTH * record.seconds
            speed = f"{record.tokens / seconds:,.0f} tokens/s"
            bar.update(task, completed=record.step, description=f"loss {loss}, step", speed=speed)
            if record.evaluation:
                console.print(f"step {record.step:>6}  loss {loss}  val {record.evaluation.loss:.4f}  "
                              f"{record.evaluation}")
                if line := sample():
                    console.print(f"  {line}")
            elif not console.is_terminal and (record.step % log_steps == 0 or time.monotonic() - shown > QUIET):
                left = (total - record.step) * seconds
                console.print(f"step {record.step:>6}  loss {loss}  lr {record.lr:.2e}  "
                              f"gradient {record.grad_norm:.3f}  {speed}  ETA {left:.0f} s")
            else:
                yield record
                continue
            shown = time.monotonic()
            yield record


@contextlib.contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call stop() at the first Ctrl-C, SIGTERM or SIGHUP, whose number is put into the list.

    The second one raises KeyboardInterrupt, with its number.  SIGHUP stays ignored under nohup.
    """
    signals: list[int] = []

    def handle(number, frame):
        if signals:
            raise KeyboardInterrupt(number)
        signals.append(number)
        stop()
        with contextlib.suppress(OSError, RuntimeError):    # the terminal may be gone, or a write be interrupted
            console.print("stopping after this step and saving; press Ctrl-C again to stop at once")
        console.quiet = console.quiet or number not in (signal.SIGINT, signal.SIGTERM)

    kept = [number for number in SIGNALS if number in (signal.SIGINT, signal.SIGTERM)
            or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in kept}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
