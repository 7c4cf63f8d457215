"""Pictures for papers and pages, by matplotlib: as wide as a column, in letters of 8 points, the same bytes each time.

The text of an SVG is text: it can be searched, and the reader's program has a font for it.
"""
import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.cli.curves import Panel
from pyllama.errors import UserError, optional
from pyllama.files import export
from pyllama.study.attention_maps import Map, titles
from pyllama.study.gradient_flow import Flow, kinds
from pyllama.study.spelling import label

COLUMN, PAGE = 3.35, 7.0                                    # widths of a column of two, and of a page, in inches
LINE, LETTER, GAP = 0.125, 0.08, 0.15                       # height of a line of text, width of a letter, between maps
STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
         "legend.fontsize": 8, "svg.fonttype": "none", "svg.hashsalt": "pyllama", "axes.linewidth": 0.5}
DATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}              # what would differ each time
SMALLEST = 0.45                                             # side of a map, though many be wider than a page
DPI = 300


def check(out: Path) -> None:
    """Raise UserError if matplotlib is not installed or cannot write this type of file."""
    suffixes = optional("matplotlib.figure", "plot").Figure().canvas.get_supported_filetypes()
    if suffix_of(out) not in suffixes:
        raise UserError(f"{out} cannot be drawn: .{suffix_of(out)} is not an image format; choose a .svg, .pdf or .png "
                        f"file")


def suffix_of(out: Path) -> str:
    """The type of the file, by its ending; png without one."""
    return out.suffix.lower().removeprefix(".") or "png"


def write(out: Path, draw: Callable[[Any], None]) -> tuple[str, ...]:
    """Write the figure that draw(figure) fills.  Returns notes.  Raises UserError if the file cannot be written."""
    check(out)
    drawing, kind = io.BytesIO(), suffix_of(out)
    with optional("matplotlib", "plot").rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = optional("matplotlib.figure", "plot").Figure(layout="constrained")     # pyplot has global state
        draw(figure)
        try:
            figure.savefig(drawing, format=kind, dpi=DPI, metadata=DATED.get(kind))
        except RuntimeError as error:                       # .pgf needs LaTeX
            raise UserError(f"{out} cannot be drawn: {str(error).partition(';')[0]}; choose a .svg, .pdf or .png file"
                            ) from None
    lacks_glyphs = False
    for warning in caught:
        if str(warning.message).startswith("Glyph"):
            lacks_glyphs = kind != "svg"
        else:
            warnings.warn(warning.message, stacklevel=2)
    export(out, [drawing.getvalue()])
    return ("the font lacks characters of the text; write a .svg, whose reader has other fonts",) * lacks_glyphs


def plain(texts: Sequence[Any]) -> None:
    """Show these texts as they are: a $ does not begin a formula."""
    for text in texts:
        text.set_parse_math(False)


def draw_curves(panels: Sequence[Panel]) -> Callable[[Any], None]:
    """Draw each quantity over the steps, with the validation losses as dots."""
    def draw(figure):
        figure.set_size_inches(COLUMN, 0.5 + 1.3 * len(panels))
        for axes, panel in zip(np.ravel(figure.subplots(len(panels), sharex=True)), panels, strict=True):
            for number, (run, line, dots) in enumerate(panel.series):
                color, name = f"C{number}", f" {run}"       # without the space, a name that begins with _ is hidden
                axes.plot(*columns(line), color=color, linewidth=0.6, alpha=0.8, label=name)
                axes.plot(*columns(dots), "o-", color="black", markerfacecolor=color, markersize=3, linewidth=0.5,
                          label=f"{name}, validation" if dots else "_")
            axes.set_ylabel(panel.label.replace(" (", "\n(").replace(" before", "\nbefore"))
            axes.grid(alpha=0.3)
        plain(figure.axes[0].legend().get_texts())
        figure.axes[-1].set_xlabel("step")
    return draw


def columns(points):
    """(all x, all y) of points"""
    return [x for x, _ in points], [y for _, y in points]


def draw_maps(maps: Sequence[Map], heads: Sequence[int]) -> Callable[[Any], None]:
    """Draw the weights of each attention in a row, a map for each of these heads, from white, 0, to black, 1.

    The darkness is the square root, so that a weight of 1/T is visible.
    """
    scale = optional("matplotlib.colors", "plot").PowerNorm

    def draw(figure):
        tokens = max(one.p.shape[-1] for one in maps)
        narrow, wide = ((width - 1) / len(heads) for width in (COLUMN, max(PAGE, 1 + SMALLEST * len(heads))))
        side = min(wide, max(narrow, SMALLEST, LINE * tokens + GAP))    # every token has a name, if there is room
        names = ["\n".join(title.rsplit(".", 1)) for title in titles(maps)]
        tall = max(side, LETTER * max(map(len, "\n".join(names).split("\n"))))
        figure.set_size_inches(1 + side * len(heads), 1 + tall * len(maps))
        grid = figure.subplots(len(maps), len(heads), squeeze=False)
        followers = [*maps[1:], None]
        for row, (one, name, after) in enumerate(zip(maps, names, followers, strict=True)):
            for place, axes in enumerate(grid[row]):
                if place >= len(one.p):                     # the encoder and the decoder may differ
                    axes.set_visible(False)
                    continue
                image = axes.imshow(one.p[place], cmap="Greys", norm=scale(0.5, 0, 1), aspect="auto",
                                    interpolation="nearest")
                name_ticks(axes.yaxis, one.queries if place == 0 else [], side)
                name_ticks(axes.xaxis, one.keys if after is None or after.keys != one.keys else [], side)
                axes.tick_params(axis="x", rotation=90)
                if all(place >= len(above.p) for above in maps[:row]):
                    axes.set_title(f"head {heads[place]}" if side > 6 * LETTER else heads[place])
            grid[row, 0].set_ylabel(name)
        figure.colorbar(image, ax=grid, label="weight of a key for a query", aspect=40, pad=0.01)
    return draw


def name_ticks(axis, tokens: Sequence[str], side: float) -> None:
    """Name the rows or columns of a map by tokens: as many of them as have room on `side` inches and the gap."""
    every = max(1, math.ceil(len(tokens) * LINE / (side - GAP)))
    places = range(0, len(tokens), every)
    axis.set_ticks(places, [label(tokens[i]) for i in places])
    plain(axis.get_ticklabels())


def draw_flow(flow: Flow) -> Callable[[Any], None]:
    """Draw the norm of each parameter's gradient, a column for each layer; below it the dead units, if any."""
    def draw(figure):
        every = kinds(flow.norms)
        rows, layers = [*dict.fromkeys(every)], 1 + max((norm.layer or 0 for norm in flow.norms), default=0)
        table = np.full((len(rows), layers + 1), np.nan)                # column 0: outside the layers
        for norm, kind in zip(flow.norms, every, strict=True):
            table[rows.index(kind), 0 if norm.layer is None else norm.layer + 1] = norm.value
        dead = [unit for unit in flow.units if unit.dead]
        heights = [1 + 1.2 * LINE * len(rows), 0.6 + 1.5 * LINE * len(dead)]
        figure.set_size_inches(PAGE, sum(heights[:1 + bool(dead)]))
        axes, *below = figure.subplots(1 + bool(dead), height_ratios=heights[:1 + bool(dead)], squeeze=False)[:, 0]
        draw_norms(figure, axes, table)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks(range(layers + 1), ["other", *range(layers)])
        for bars in below:
            bars.barh([unit.name for unit in dead], [unit.dead / unit.total for unit in dead], color="0.4")
            bars.invert_yaxis()
            bars.set_xlim(0, 1)
            bars.set_xlabel("share of units without a gradient")
    return draw


def draw_norms(figure, axes, table: np.ndarray) -> None:
    """Draw norms [N M] by their logarithm; 0 is written, and NaN is blank."""
    with np.errstate(divide="ignore"):
        powers = np.log10(table)
    image = axes.imshow(np.where(np.isfinite(powers), powers, np.nan), cmap="viridis", aspect="auto")
    for row, column in np.argwhere(table == 0):
        axes.text(column, row, "0", ha="center", va="center")
    axes.set_xlabel("layer")
    figure.colorbar(image, ax=axes, label="log₁₀ of the gradient's norm")
