"""What the survivors say about the tests: the table, and whether each survivor has a reason."""
from collections import Counter

from rich.console import Console
from rich.table import Table

from pyllama.op import OPS

ENOUGH = 95                                                 # percent of the forward mutants; of the others all


def judge(survived: dict, reasons: dict) -> bool:
    """Print all there is to say.  `reasons` is unit -> function -> mutant's change, or its whole statement -> reason.

    True if every survivor has a reason, every reason a survivor, and enough of the forward mutants died.
    """
    console = Console(soft_wrap=True, markup=False, highlight=False)
    accepted, idle = {}, {(unit, function, key) for unit in {mutant.unit for mutant in survived}
                          for function, keys in reasons.get(unit, {}).items() for key in keys}
    for mutant in (mutant for mutant, lives in survived.items() if lives):
        for key in (mutant.change, mutant.statement):
            if reasons.get(mutant.unit, {}).get(mutant.function, {}).get(key):
                accepted[mutant] = True
                idle.discard((mutant.unit, mutant.function, key))
    scores = count(survived, accepted)
    console.print(table(scores))
    unexplained = [mutant for mutant, lives in survived.items() if lives and mutant not in accepted]
    for mutant in unexplained:
        console.print(f"survived    {mutant.where} {mutant.function}:  {mutant.change}")
    for unit, function, key in sorted(idle):
        console.print(f"not needed  {unit} {function}:  {key}  (killed, or no mutant any more)")
    return not unexplained and not idle and percent(*scores.get(("all", "forward"), (0, 0, 0))) >= ENOUGH


def count(survived, accepted):
    """(unit, function) -> mutants, killed, accepted; the last rows are the totals."""
    rows = {}
    for label in (lambda mutant: (mutant.unit, mutant.function), lambda mutant: ("all", kind(mutant))):
        every, killed, known = (Counter(label(mutant) for mutant, lives in survived.items() if chosen(mutant, lives))
                                for chosen in (lambda mutant, lives: True, lambda mutant, lives: not lives,
                                               lambda mutant, lives: mutant in accepted))
        rows |= {row: (every[row], killed[row], known[row]) for row in every}
    return rows


def table(scores):
    shown = Table("", "", *("mutants", "killed", "accepted", "score"))
    for (unit, function), (every, killed, known) in scores.items():
        shown.add_row(unit, function, str(every), str(killed), str(known), f"{percent(every, killed, known):.1f} %")
    return shown


def percent(every, killed, known):
    """The mutation score: what is accepted is no bug, and does not count."""
    return 100 * killed / (every - known) if every > known else 100.0


def kind(mutant):
    return "C" if mutant.unit not in OPS else "backward" if mutant.function == "backward" else "forward"
