"""The classes of a task: their order, and notes on those that look like a mistake."""
from collections import Counter
from collections.abc import Iterable

from pyllama.tasks.columns import is_number

FEW = 20                                                    # numbers that may well be classes


def in_order(names: Iterable[str]) -> list[str]:
    """The different names in alphabetical order, or by size if all are numbers.

    >>> from pyllama.tasks.labels import in_order
    >>> in_order(["10", "9", "10"]), in_order(["b", "10", "a"])
    (['9', '10'], ['10', 'a', 'b'])
    """
    different = set(names)
    if all(map(is_number, different)):
        return sorted(different, key=lambda name: (float(name), name))
    return sorted(different)


def notes(labels: Iterable[str]) -> list[str]:
    """Notes on the labels of all rows: numbers to estimate, one class in two spellings, classes with a single row."""
    counts = Counter(labels)
    lines = []
    if len(counts) > FEW and all(map(is_number, counts)):
        lines.append(f"the labels are {len(counts)} different numbers, and each is a class without an order; for "
                     f"grades or measurements use the task regress")
    spellings: dict[str, list[str]] = {}
    for name in in_order(counts):
        spellings.setdefault(" ".join(name.split()).casefold(), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            lines.append(f"{' and '.join(map(repr, names))} are different classes; give one the name of the other if "
                         f"they are the same")
    single = [name for name in in_order(counts) if counts[name] == 1]
    if single and len(single) < len(counts):
        shown = ", ".join(map(repr, single[:5])) + ", ..." * (len(single) > 5)
        lines.append(f"{len(single)} of {len(counts)} classes have only one row: {shown}")
    return lines
