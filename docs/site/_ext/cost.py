"""The rows of the tables on operations, time and memory."""
import re
from collections.abc import Iterator

from counts import BENCHED, BYTES, LARGE, SHARDS, at_once, counted
from places import ROOT

MEASURED = ROOT / "bench" / "README.md"
UNITS = "", " k", " M", " G", " T", " P", " E", " Z"


def short(x: float) -> str:
    """A number with three digits and a unit.

    >>> short(6_607_077_376)
    '6.61 G'
    """
    power = 0
    while x >= 999.5 and power < len(UNITS) - 1:
        x, power = x / 1000, power + 1
    digits = 3 - len(str(int(x))) if power else 0
    return f"{x:.{digits}f}{UNITS[power]}"


def mebibytes(numbers: float) -> str:
    """The memory of numbers of float32.

    >>> mebibytes(2 ** 28)
    '1,024'
    """
    return f"{numbers * BYTES / 2 ** 20:,.0f}"


def share(part: float) -> str:
    return f"{100 * part:.1f} %"


def half(of: dict[str, float]) -> float:
    """The context at which attention has half of the operations."""
    return of["N"] / (of["L"] * of["H"] * of["K"]) - 1


def costs() -> Iterator[tuple[str, ...]]:
    for name in (*BENCHED, LARGE):
        of = counted(name)
        weights = 6 * of["N"] * of["n"]
        yield (name, short(of["P"]), short(of["N"]), f"{of['n']:,.0f}", short(6 * of["N"]), f"{of['T']:,.0f}",
               share(1 - weights / of["C'"]), short(half(of)))


def measured() -> dict[str, dict[str, str]]:
    """model -> column -> cell, of the table of training steps in bench/README.md."""
    lines = [line.strip("|").split("|") for line in MEASURED.read_text("utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    headings = next(row for row in rows if row[0] == "size")
    return {row[0].partition(":")[0]: dict(zip(headings, row, strict=True))
            for row in rows[rows.index(headings) + 2:][:len(BENCHED)]}


def number(text: str) -> float:
    """
    >>> number("3,059 MiB")
    3059.0
    """
    return float(re.sub(r"[^\d.]", "", text))


def speeds() -> Iterator[tuple[str, ...]]:
    for name, row in measured().items():
        of = counted(name)
        each = of["C'"] / of["n"]
        yield name, row["tokens/s"], short(each), short(number(row["tokens/s"]) * each), share(number(row["MFU"]))


def memories() -> Iterator[tuple[str, ...]]:
    """In MiB: a batch of the benched models, and one sequence of the large one."""
    for name, sequences in (*((name, None) for name in BENCHED), (LARGE, 1)):
        of = counted(name, sequences)
        scores, pairs = of["n"] * of["V"], of["L"] * of["n"] * of["H"] * of["T"]
        yield (name, *map(mebibytes, (4 * of["P"], of["S"], of["S'"], scores, pairs)))


def held(name: str) -> tuple[float, ...]:
    """Numbers: parameters, gradients of all shards, both means, activations of a piece of each shard."""
    of = counted(name)
    return of["P"], SHARDS * of["P"], 2 * of["P"], of["S"] * at_once(name) / of["n"]


def pieces() -> Iterator[tuple[str, ...]]:
    """In MiB, beside the measured peak."""
    for name, row in measured().items():
        numbers = held(name)
        peak = number(row["peak memory"])
        yield name, f"{at_once(name):,}", *map(mebibytes, (*numbers, sum(numbers))), f"{peak:,.0f}"
