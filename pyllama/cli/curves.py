"""What the log of a run has to draw: loss, learning rate, gradient norm and speed over the steps."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pyllama.cli.characters import Point
from pyllama.cli.output import visible
from pyllama.errors import UserError
from pyllama.training.log import read_log


class Series(NamedTuple):
    """The values of a run: of each step, and of its evaluations."""
    run: str
    line: list[Point]
    dots: list[Point]


class Panel(NamedTuple):
    """A quantity of several runs."""
    label: str
    series: list[Series]


def logged(key: str) -> Callable[[dict], float | None]:
    """A function of a line of a log: the number under the key, or None."""
    def number(line):
        value = line.get(key)
        return value if isinstance(value, int | float) else None
    return number


def speed(line: dict) -> float | None:
    """The tokens per second of a step, or None."""
    tokens, seconds = logged("tokens")(line), logged("seconds")(line)
    return tokens / seconds if tokens is not None and seconds else None


QUANTITIES = {"loss (nats per prediction)": logged("loss"),                # of a token, a class or a position
              "learning rate": logged("lr"), "gradient norm before clipping": logged("grad_norm"), "tokens/s": speed}
EVALUATED = {"loss (nats per prediction)": logged("val_loss")}


def panels(runs: Sequence[Path]) -> list[Panel]:
    """The quantities that the logs of the runs have.  Raises UserError if a folder has no log, or no log has one."""
    logs = {}
    for folder in runs:
        logs[folder] = read_log(folder)
        if not logs[folder]:
            raise UserError(f"{folder} has no log.jsonl with steps; give the folder of a run, or ask for "
                            f"attention or gradients of a model")
    every = [Panel(label, [Series(visible(folder.resolve().name), points(lines, quantity),
                                  points(lines, EVALUATED.get(label, logged(""))))
                           for folder, lines in logs.items()])
             for label, quantity in QUANTITIES.items()]
    drawable = [panel for panel in every if any(series.line for series in panel.series)]
    if not drawable:
        raise UserError(f"the log of {runs[0]} has steps without values; give another run")
    return drawable


def points(lines: list[dict], value: Callable[[dict], float | None]) -> list[Point]:
    """(step, value) of the lines that have this value."""
    return [(line["step"], found) for line in lines if (found := value(line)) is not None]
