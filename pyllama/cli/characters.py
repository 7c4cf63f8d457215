"""Pictures made of characters: bars, shaded maps and curves.

They are drawn in Unicode or, where standard output cannot encode that, in ASCII.  The escape that stands for a
character of a message, such as \\u2588, would tear a picture apart.
"""
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

Point = tuple[float, float]


class Ink(NamedTuple):
    """The characters of a picture.

    shades      from the lightest to the darkest
    plus, minus of bars
    dot         of a single point
    cell        width and height of a character of a curve in its smallest marks
    mark        the character of a curve that has these marks, the bits of a number
    """
    shades: str
    plus: str
    minus: str
    dot: str
    cell: tuple[int, int]
    mark: Callable[[int], str]


BRAILLE = 0x2800                                            # the character without marks
MARKS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))            # the bits of its marks, row by row
UNICODE = Ink(" ░▒▓█", "█", "░", "●", (2, 4), lambda marks: chr(BRAILLE + marks))
ASCII = Ink(" .:*#", "+", "-", "o", (1, 1), lambda marks: "*")
LEFT = 10                                                   # width of the numbers beside a curve


def ink() -> Ink:
    """The characters that standard output can encode."""
    try:
        (UNICODE.shades + UNICODE.dot + chr(BRAILLE)).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII
    return UNICODE


def bar(value: float, largest: float, width: int = 30) -> str:
    """A bar whose length is |value| / largest of the width, rounded.

    >>> from pyllama.cli.characters import bar
    >>> len(bar(-0.5, 1.0)), bar(1.0, 0.0)
    (15, '')
    """
    length = round(width * min(1.0, abs(value) / largest)) if largest > 0 else 0
    return length * (ink().plus if value >= 0 else ink().minus)


def shade(value: float) -> str:
    """The shade of a number from 0 to 1; a number above 0 is not blank."""
    shades = ink().shades
    return shades[min(len(shades) - 1, math.ceil(value * (len(shades) - 1) - 1e-9))]


def curve(line: Sequence[Point], dots: Sequence[Point] = (), width: int = 60, height: int = 10) -> list[str]:
    """The line, and single points, as `height` lines of characters with the ends of the axes beside them.

    Points with a value that is not finite are left out.
    """
    line, dots = finite(line), finite(dots)
    if not line and not dots:
        return ["no values"]
    xs, ys = zip(*line, *dots, strict=True)
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    marks = ink()
    columns, rows = width * marks.cell[0], height * marks.cell[1]

    def at(point: Point) -> tuple[int, int]:
        """(column, row) of the mark of a point, the row from the top"""
        (x, y), wide, tall = point, right - left, high - low
        return (round((x - left) / wide * (columns - 1)) if wide else 0,
                round((high - y) / tall * (rows - 1)) if tall else rows // 2)

    cells = drawn([*map(at, line)], width, height, marks)
    for column, row in map(at, dots):
        cells[row // marks.cell[1]][column // marks.cell[0]] = marks.dot
    ends = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    numbers = f"{left:g}", f"{right:g}"
    return [*(f"{ends.get(i, ''):>{LEFT}} {''.join(row).rstrip()}".rstrip() for i, row in enumerate(cells)),
            f"{'':{LEFT}} {numbers[0]}{numbers[1]:>{width - len(numbers[0])}}"]


def finite(points: Iterable[Point]) -> list[Point]:
    """The points whose values are numbers."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def drawn(places: Sequence[tuple[int, int]], width: int, height: int, marks: Ink) -> list[list[str]]:
    """The characters of a curve through the marks at these (column, row), with straight lines between them."""
    wide, tall = marks.cell
    bits = [[0] * width for _ in range(height)]
    for (column, row), (next_column, next_row) in pairwise([*places, *places[-1:]]):
        steps = max(1, abs(next_column - column), abs(next_row - row))
        for i in range(steps + 1):
            x, y = (round(a + (b - a) * i / steps) for a, b in ((column, next_column), (row, next_row)))
            bits[y // tall][x // wide] |= MARKS[y % tall][x % wide]
    return [[marks.mark(bit) if bit else " " for bit in row] for row in bits]
