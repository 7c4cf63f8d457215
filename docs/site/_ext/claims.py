"""The formulas of a chapter, run on random numbers: one that does not hold stops the build."""
from dataclasses import replace

import derived

from pyllama.study.derivation import Derivation
from pyllama.study.notation import parse
from pyllama.study.running import Run

LONG = 3                                                    # of the first axis; the next ones are longer


def about(what: str) -> Run:
    """A run that goes on after a derivation, such as "counting", or begins with arrays, such as "x_nd w_ed dy_ne".

    Raises ValueError if a line of the derivation does not hold.
    """
    if "_" in what and not derived.of(what):
        return Run(with_arrays(what.split()))
    run = Run(replace(derived.of(what)[0], symbols=False))
    for outcome in run.steps():
        if outcome.wrong:
            raise ValueError(f"{what}: {outcome.step.line}: {outcome.wrong}")
    return run


def with_arrays(indexed: list[str]) -> Derivation:
    """Without a line.  An array whose name begins with d is the gradient of an output."""
    named = dict(one.split("_") for one in indexed)
    letters = sorted({letter for indices in named.values() for letter in indices})
    return Derivation(title="", steps=(), symbols=False, letters={letter: letter.upper() for letter in letters},
                      sizes={letter.upper(): LONG + k for k, letter in enumerate(letters)}, implicit=(),
                      arrays={name: " ".join(indices.upper()) for name, indices in named.items()},
                      loss={name[1:]: name for name in named if name.startswith("d")})


def require(run: Run, lines: list[str]) -> None:
    """Raises ValueError if a line does not hold, or defines a name though the run is that of a derivation."""
    for line in lines:
        verdicts = run.on_numbers.run(parse(line))
        if not verdicts and run.derivation.steps:
            raise ValueError(f"{line}: the derivation does not have this name")
        if any(verdicts):
            raise ValueError(f"{line}: {'; '.join(verdicts)}")
