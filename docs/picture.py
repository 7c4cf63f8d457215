"""The README's picture: the losses of a run as an SVG, readable on a white and on a dark page.

    python docs/picture.py runs/demo docs/demo.svg                     what `make picture` runs after the demo
"""
import sys
from pathlib import Path

from pyllama.training.log import read_log

WIDTH, HEIGHT = 800, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 30, 20, 45               # margins
SMOOTH = 0.05                                           # weight of the newest step, as in the progress line
EVERY = 4                                               # steps between points: a small file, and the same curve
GRAY, BLUE, ORANGE = "#808080", "#3b82f6", "#e8710a"    # each is readable on white and on black

PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"
     font-size="13">
<title>Loss of {name} over {steps} steps</title>
{parts}
</svg>
"""


def smoothed(values):
    """The exponential moving average after each value."""
    mean = values[0]
    for value in values:
        mean += SMOOTH * (value - mean)
        yield mean


def polyline(points, color, width):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def text(x, y, content, color=GRAY, anchor="middle"):
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{content}</text>'


def picture(name: str, log: list[dict]) -> str:
    """The SVG of a run's log: training loss as a line, validation losses as dots with their values."""
    steps = log[-1]["step"]
    losses = list(smoothed([line["loss"] for line in log]))
    validation = [(line["step"], line["val_loss"]) for line in log if "val_loss" in line]
    low = int(min(*losses, *(loss for _, loss in validation)))
    high = int(max(losses)) + 1

    def at(step, loss):
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / steps
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)
        return x, y

    parts = []
    for loss in range(low, high + 1):
        x, y = at(0, loss)
        parts.append(polyline([(x, y), at(steps, loss)], GRAY, 0.3))
        parts.append(text(x - 10, y + 4, loss, anchor="end"))
    for quarter in range(5):
        step = steps * quarter // 4
        x, y = at(step, low)
        parts.append(text(x, y + 18, step))
    parts.append(text(WIDTH / 2, HEIGHT - 8, "step"))
    parts.append(text(LEFT + 60, TOP + 12, "loss, nats per token", anchor="start"))

    points = [at(line["step"], loss) for line, loss in zip(log, losses, strict=True)]
    parts.append(polyline(points[::EVERY], BLUE, 1.5))
    parts.append(polyline([at(*point) for point in validation], ORANGE, 1.5))
    for step, loss in validation:
        x, y = at(step, loss)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ORANGE}"/>')
        parts.append(text(x, y - 10, f"{loss:.2f}", ORANGE))

    legend = WIDTH - RIGHT - 140
    for row, (label, color) in enumerate({"training": BLUE, "validation": ORANGE}.items()):
        y = TOP + 8 + 20 * row
        parts.append(polyline([(legend, y), (legend + 25, y)], color, 3))
        parts.append(text(legend + 35, y + 4, label, color, "start"))
    return PAGE.format(width=WIDTH, height=HEIGHT, name=name, steps=steps, parts="\n".join(parts))


if __name__ == "__main__":
    run, out = map(Path, sys.argv[1:])
    out.write_text(picture(run.name, read_log(run)), encoding="utf-8")
    print(f"wrote {out}")
