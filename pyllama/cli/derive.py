"""The command derive: a derivation step by step, each step checked while it is printed."""
import difflib
import re
import textwrap
from collections import Counter

from pyllama.errors import UserError, counted
from pyllama.study import derivation as derivations
from pyllama.study.derivation import Derivation, Step, plain
from pyllama.study.running import DEFINED, Outcome, Run

WIDTH = 80


def derive(name: str | None = None, /, at: str | None = None, why: str | None = None, seed: int = 0) -> int:
    """Walk through the derivation of an op or of a part of a model; every step is run while it is printed.

    A step is proved by SymPy for arrays of a few symbols, or exact to rounding by a complex step on random numbers.
    The exit code is 1 if a step is wrong, or if the code computes something else.

    pyllama derive rms_norm

    pyllama derive rms_norm --why "mean(g n)"

    Args:
        name: what to derive (default: list all derivations)
        at: start at the line of this name, such as dx
        why: print only the step where this term first appears
        seed: seed of the random numbers
    """
    if name is None:
        for one in derivations.names():
            print(f"{one:22}{found(one)[0].title}")
        return 0
    those = chosen(found(name), name, at, why)
    if at is None and why is None:
        print(f"\n{derivations.setting(name)}")
    return max(printed(one, at, why, seed) for one in those)


def found(name: str) -> list[Derivation]:
    """The derivations of this name.  Raises UserError for an unknown one."""
    try:
        return derivations.load(name)[0]
    except KeyError:
        known = derivations.names()
        close = difflib.get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"the derivations are {', '.join(known)}"
        raise UserError(f"there is no derivation {name!r}; {hint}") from None


def chosen(those: list[Derivation], name: str, at: str | None, why: str | None) -> list[Derivation]:
    """The derivations that have the line or the term.  Raises UserError if none has."""
    with_at = [one for one in those if at is None or any(defines(step, at) for step in one.steps)]
    if not with_at:
        lines = dict.fromkeys(subject(step) for one in those for step in one.steps)
        raise UserError(f"{name} does not derive {at!r}; it derives {', '.join(filter(None, lines))}")
    with_why = [one for one in with_at if why is None or any(has(step, why) for step in one.steps)]
    if not with_why:
        raise UserError(f"the term {why!r} is in no step of {name}; pyllama derive {name} prints them all")
    return with_why if why is None else with_why[:1]


def printed(one: Derivation, at: str | None, why: str | None, seed: int) -> int:
    """Run a derivation and print its steps.  Returns 1 if something is wrong, else 0."""
    run, shown, outcomes = Run(one, seed), at is None, []
    print(f"\n{one.title}{f' ({one.case})' if one.case else ''}\n")
    for number, outcome in enumerate(run.steps(), 1):
        outcomes.append(outcome)
        shown = shown or defines(outcome.step, str(at))
        if outcome.wrong or (shown and (why is None or has(outcome.step, why))):
            print(as_text(number, outcome))
            if why is not None and not outcome.wrong:
                return 0
    differs = run.code()
    kinds = Counter(outcome.kind for outcome in outcomes)
    print(f"{counted(len(outcomes), 'step')}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    if run.has_code:
        print(f"the code is wrong, or the derivation: {differs}" if differs else
              "the code computes the same, on random numbers")
    return int(bool(differs) or any(outcome.wrong for outcome in outcomes))


def as_text(number: int, outcome: Outcome) -> str:
    """A step: the line and its badge, the reason, the code, and what is wrong."""
    step = outcome.step
    badge = "" if outcome.kind == DEFINED else "wrong" if outcome.wrong else outcome.kind
    lines = [f"{number:3}  {plain(step.line):{WIDTH - 28}} {badge}".rstrip()]
    lines += textwrap.wrap(step.why.replace("`", ""), WIDTH - 9, initial_indent=" " * 9, subsequent_indent=" " * 9)
    if step.code:
        lines.append(f"         code:  {step.code}")
    if outcome.wrong:
        lines.append(f"         wrong: {outcome.wrong}")
    return "\n".join(lines) + "\n"


def subject(step: Step) -> str:
    """The name on the left side of a step, without indices; "" for a line that goes on with the one before."""
    return re.split(r"[_=( ]", plain(step.line), maxsplit=1)[0]


def defines(step: Step, name: str) -> bool:
    return subject(step) == name or any(re.match(rf"{re.escape(name)}\b", side.strip())
                                        for side in plain(step.line).split("=")[:-1])


def has(step: Step, term: str) -> bool:
    """Is the term in the step?  mean(g n) stands for mean_i g_i n_i, too."""
    return " ".join(term.split()) in plain(step.line) or bare(term) in bare(step.line)


def bare(text: str) -> str:
    """The text without indices, parentheses and spaces."""
    return re.sub(r"_\{[^}]*\}|_\w+|[()\s]", "", text)
