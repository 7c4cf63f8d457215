"""Plots of one or more runs as a PNG: loss, learning rate, gradient norm."""
import io
from pathlib import Path

from pyllama.cli.output import visible
from pyllama.errors import UserError, optional
from pyllama.files import export
from pyllama.training.log import read_log

PANELS = [("loss", "loss (nats per prediction)"),            # of a token, a class or a position
          ("lr", "learning rate"), ("grad_norm", "gradient norm before clipping")]


def curve(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines of a log that have a value under the key."""
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def draw(runs: list[Path], out: Path) -> None:
    """Plot each run's log.jsonl over the steps, with validation losses as dots.

    Raises UserError if a folder has no log, or out is not an image format.
    """
    matplotlib = optional("matplotlib.figure", "plot")      # not pyplot, which has global state
    figure = matplotlib.Figure(figsize=(8, 9), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(len(PANELS), sharex=True), PANELS, strict=True):
        for number, folder in enumerate(runs):
            lines = read_log(folder)
            if not lines:
                raise UserError(f"{folder} has no log.jsonl with steps; give the folder of a run")
            name = " " + visible(folder.resolve().name).replace("$", r"\$")       # not a formula, nor a hidden label
            axes.plot(*curve(lines, key), color=f"C{number}", linewidth=0.8, alpha=0.8, label=name)
            steps, values = curve(lines, f"val_{key}")
            axes.plot(steps, values, "o-", color="black", markerfacecolor=f"C{number}", markersize=4, linewidth=0.5,
                      label=f"{name}, validation" if steps else "_")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.axes[-1].set_xlabel("step")
    drawing = io.BytesIO()
    try:
        figure.savefig(drawing, format=out.suffix.removeprefix(".") or "png", dpi=120)
    except ValueError as error:
        raise UserError(f"cannot draw {out}: {error}; choose a .png file") from None
    export(out, [drawing.getvalue()])
