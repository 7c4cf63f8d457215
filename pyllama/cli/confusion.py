"""A confusion matrix as a table: the counts, or, of too many classes for the width, a line for each class."""
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.measure import Measurement
from rich.table import Table

from pyllama.cli.output import console

SHORT = 5                                                   # classes whose names head the columns
WHOLE = 32                                                  # characters of a name that is not broken
INSTEAD = 3                                                 # wrong classes named in a line


def confusion_table(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    """The confusion matrix [C C], a row for each true class."""
    heads = [*names] if len(names) <= SHORT else [str(i) for i, _ in enumerate(names, 1)]
    table = Table("true \\ predicted", *heads, box=SIMPLE)
    for head, name, counts in zip(heads, names, confusion, strict=True):
        table.add_row(name if head == name else f"{head} {name}", *map(str, counts))
    fits = Measurement.get(console, console.options.update(max_width=10 ** 6), table).maximum <= console.width
    return table if fits else lines_of_classes(names, confusion)


def lines_of_classes(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    """A line for each class: its rows, precision, recall, and the most frequent classes predicted instead."""
    table = Table(box=SIMPLE)
    table.add_column("true class", no_wrap=max(map(len, names)) <= WHOLE, overflow="fold")
    for title in ("rows", "precision", "recall"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("predicted instead", overflow="fold")
    for i, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        predicted = sum(row[i] for row in confusion)
        wrong = sorted((-count, names[j]) for j, count in enumerate(counts) if count and j != i)
        instead = [f"{other} {-count:,}" for count, other in wrong[:INSTEAD]]
        table.add_row(name, f"{sum(counts):,}", share(counts[i], predicted), share(counts[i], sum(counts)),
                      ", ".join([*instead, *["..."] * (len(wrong) > INSTEAD)]))
    return table


def share(part: int, whole: int) -> str:
    """part / whole; a dash if whole is 0."""
    return f"{part / whole:.3f}" if whole else "-"
