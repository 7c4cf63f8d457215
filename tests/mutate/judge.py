"""Judge the tests by the mutants that survive: print the table, and check that each survivor has a reason."""
from rich.console import Console

from pyllama.op import OPS
from tests.mutate.python_mutants import ROOT
from tests.mutate.scores import count, table


def judge(survived: dict, reasons: dict, enough: float) -> bool:
    """Print all there is to say.  `reasons` is unit -> function -> mutant's change, or its whole statement -> reason.

    True if every survivor has a reason, every reason a survivor, and enough percent of the forward mutants died, for
    reasons have their limits.
    """
    console = Console(soft_wrap=True, markup=False, highlight=False)
    hunted = {mutant.unit for mutant in survived} | {unit for unit in reasons if not exists(unit)}
    accepted, idle = set(), {(unit, function, key) for unit in hunted & reasons.keys()
                             for function, keys in reasons[unit].items() for key in keys}
    for mutant in (mutant for mutant, lives in survived.items() if lives):
        for key in (mutant.change, mutant.statement):
            if reasons.get(mutant.unit, {}).get(mutant.function, {}).get(key):
                accepted.add(mutant)
                idle.discard((mutant.unit, mutant.function, key))
    scores = count(survived, accepted, place, total)
    console.print(table(scores))
    unexplained = [mutant for mutant, lives in survived.items() if lives and mutant not in accepted]
    for mutant in unexplained:
        console.print(f"survived    {mutant.where} {mutant.function}:  {mutant.change}")
    for unit, function, key in sorted(idle):
        console.print(f"not needed  {unit} {function}:  {key}  (killed, or no mutant any more)")
    every, killed, _ = scores.get(("all", "forward"), (0, 0, 0))
    return not unexplained and not idle and 100 * killed >= enough * every


def place(mutant):
    return mutant.unit, mutant.function


def total(mutant):
    return "all", kind(mutant)


def exists(unit):
    return unit in OPS or (ROOT / "csrc/cpu" / unit).exists()


def kind(mutant):
    return "C" if mutant.unit not in OPS else "backward" if mutant.function == "backward" else "forward"
