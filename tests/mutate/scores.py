"""Count mutants: how many there are, how many were killed, how many survive for a known reason."""
from collections.abc import Callable, Hashable, Iterable

from rich.box import SIMPLE
from rich.table import Table

from pyllama.testing.mutation.mutants import Mutant

Counts = tuple[int, int, int]                   # mutants, killed, known


def count(survived: dict[Mutant, bool], known: Iterable[Mutant], *labels: Callable[[Mutant], Hashable]
          ) -> dict[Hashable, Counts]:
    """The counts of each label of the mutants, those of the first function of labels first."""
    rows: dict[Hashable, Counts] = {}
    for label in labels:
        for mutant, lives in survived.items():
            every, killed, accepted = rows.get(label(mutant), (0, 0, 0))
            rows[label(mutant)] = every + 1, killed + (not lives), accepted + (mutant in known)
    return rows


def table(scores: dict[tuple[str, str], Counts]) -> Table:
    """The counts, a row for each (unit, function), with the score."""
    shown = Table("", "", "mutants", "killed", "known", "score", box=SIMPLE, pad_edge=False)
    for (unit, function), (every, killed, known) in scores.items():
        score = percent(every, killed, known)
        shown.add_row(unit, function, str(every), str(killed), str(known), f"{score:.1f} %")
    return shown


def percent(every: int, killed: int, known: int) -> float:
    """The mutation score; known survivors are not bugs and do not count."""
    return 100 * killed / (every - known) if every > known else 100.0
