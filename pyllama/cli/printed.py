"""Pictures in the terminal: curves, attention maps and gradient norms as lines of characters."""
import math
from collections.abc import Sequence

from pyllama.cli.characters import LEFT, bar, curve, ink, shade
from pyllama.cli.curves import Panel
from pyllama.errors import UserError, counted
from pyllama.study.attention_maps import Map, titles
from pyllama.study.gradient_flow import Flow
from pyllama.study.spelling import label

TALL, LOW = 10, 4                                           # lines of the first curve, and of the others
WIDEST = 72                                                 # characters of a curve
NAME = 14                                                   # characters of a token beside a map


def curves(panels: Sequence[Panel], width: int) -> list[str]:
    """The curves of each run, one below the other, with the validation losses as dots."""
    lines, wide = [], max(1, min(WIDEST, width - LEFT - 3))
    for number, panel in enumerate(panels):
        for series in panel.series:
            dots = f", {ink().dot} validation" if series.dots else ""
            lines += [f"{series.run}: {panel.label}{dots}",
                      *curve(series.line, series.dots, wide, TALL if number == 0 else LOW), ""]
    return lines[:-1]


def maps(found: Sequence[Map], heads: Sequence[int], width: int | None) -> list[str]:
    """Each map with its tokens: a row for each query, two characters for each key, the darker the larger its weight.
    The darkness is the square root, as in figures.py.

    heads    the numbers of the heads
    width    of the terminal; None: there is none

    Raises UserError if a map is wider.
    """
    needed = NAME + 5 + 2 * max(one.p.shape[-1] for one in found)
    if width is not None and needed > width:
        raise UserError(f"a map of {counted(len(found[0].keys), 'token')} needs {needed} columns, but the terminal has "
                        f"{width}; shorten the text, or write the maps to a file with out")
    lines = []
    for one, title in zip(found, titles(found), strict=True):
        for head, p in zip(heads, one.p, strict=False):     # the encoder and the decoder may differ
            lines += [f"{title}, head {head}", *shaded(one, p), ""]
    return [*lines, f"a row is a query, a column a key, numbered alike; weights: {scale()}"]


def shaded(one: Map, p) -> list[str]:
    """The weights p [T S] of a head."""
    numbers = f"{'':{NAME + 5}}{''.join(f'{s % 100:>2}' for s in range(len(one.keys)))}"
    rows = [f"{t:>3} {label(token)[:NAME]:{NAME}} {''.join(2 * shade(math.sqrt(weight)) for weight in row)}".rstrip()
            for t, (token, row) in enumerate(zip(one.queries, p, strict=True))]
    return [numbers, *rows]


def scale() -> str:
    """The shades, and the largest weight of each."""
    shades = ink().shades
    return ", ".join(f"{mark} up to {(i / (len(shades) - 1)) ** 2:.2g}" for i, mark in enumerate(shades) if i)


def flow(found: Flow) -> list[str]:
    """A line for each parameter, with a bar on a scale of powers of ten, and a line for each activation."""
    width = max(len(norm.name) for norm in found.norms)
    powers = [math.log10(norm.value) for norm in found.norms if 0 < norm.value < math.inf]
    low, high = math.floor(min(powers, default=0)), math.ceil(max(powers, default=0))
    rows = [f"{norm.name:{width}} {norm.value:9.2e} {logarithmic(norm.value, low, high)}".rstrip()
            for norm in found.norms]
    units = [f"{unit.name:{width}} {unit.dead:,} of {counted(unit.total, 'unit')} without a gradient"
             for unit in found.units]
    return [f"norms of the gradient of a loss of {found.loss:.4f} nats; bars from 1e{low:+03d} to 1e{high:+03d}",
            *rows, *units]


def logarithmic(value: float, low: int, high: int) -> str:
    """A bar that is empty at 10^low and full at 10^high."""
    return bar(math.log10(value) - low, max(1, high - low)) if 0 < value < math.inf else ""
