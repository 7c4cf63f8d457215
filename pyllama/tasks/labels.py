"""The classes of a task: their order, and notes on those that look like a mistake."""
import math
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from pyllama.tasks.columns import is_number

FEW = 20                                                    # numbers that may well be classes
NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?(e[-+]?\d\d?)?", re.ASCII | re.IGNORECASE)      # 01 is a code


def in_order(names: Iterable[str]) -> list[str]:
    """The different names in alphabetical order, or by size if all are finite numbers.

    >>> from pyllama.tasks.labels import in_order
    >>> in_order(["10", "9", "10"]), in_order(["b", "10", "9"]), in_order(["nan", "10", "9"])
    (['9', '10'], ['10', '9', 'b'], ['10', '9', 'nan'])
    """
    different = set(names)
    if are_numbers(different):
        return sorted(different, key=lambda name: (float(name), name))
    return sorted(different)


def shortest(name: str) -> str:
    """A number in its shortest decimal form; another name, such as 01, as it is.

    >>> from pyllama.tasks.labels import shortest
    >>> shortest("1.0"), shortest("-0.50"), shortest("100"), shortest("01"), shortest("good")
    ('1', '-0.5', '100', '01', 'good')
    """
    if not NUMBER.fullmatch(name):
        return name
    digits = f"{Decimal(name):f}".lstrip("+")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def alike(names: Iterable[str]) -> dict[str, str]:
    """{name: its class}: numbers of the same value are one class, if all names are numbers."""
    different = set(names)
    all_numbers = all(map(NUMBER.fullmatch, different))
    return {name: shortest(name) if all_numbers else name for name in different}


def are_numbers(names: Iterable[str]) -> bool:
    """Are all names finite numbers?  The word nan has no place among them."""
    return all(is_number(name) and math.isfinite(float(name)) for name in names)


def notes(labels: Iterable[str]) -> list[str]:
    """Notes on the labels of all rows: numbers to estimate, one class in two spellings, classes with a single row."""
    counts = Counter(labels)
    lines = []
    if len(counts) > FEW and are_numbers(counts):
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
