"""A report as plain text: a table with a line for each gradient, the worst last, then what is wrong in words.

The columns follow OpenMDAO's check_partials: one line a pair, a star on what is wrong.  "claimed" is always what back
says, "measured" what f does.
"""
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllama.testing.report import Pair, Report, Verdict

WIDTH = 120
MOST = 5                                                # wrong pairs with details: a bug in a model spoils many
NARROW = 12                                             # names are not cut below this width
HEAD = ("input", "output", "method", "claimed", "measured", "|claimed - measured|", "verdict")
BELOW = ("", "", "", "(back says)", "(f does)", "≤ tolerance", "")
GAP = "  "


def text(report: "Report", only_wrong: bool = False) -> str:
    """The whole report, at most WIDTH columns wide but for the Python to paste and the replay line."""
    pairs = ordered(report)
    shown = [pair for pair in pairs if pair.worst.status != "passed"] if only_wrong else pairs
    parts = [wrapped(summary(report))]
    if shown:
        parts.append(table(shown))
    parts += [details(pair) for pair in worst(report)] + unsaid(report) + [*map(wrapped, undecided(report))]
    remarks = [*(f"Fault ({fault.kind}): {fault.sentence}" for fault in report.faults),
               *(f"Note: {note}" for note in report.notes)]
    if report.skipped:
        remarks.append(f"Skipped: {'; '.join(report.skipped)}")
    if remarks:
        parts.append("\n".join(map(wrapped, remarks)))
    if report.case:
        parts.append("The smallest failing case:\n\n" + textwrap.indent(report.case.rstrip(), "    "))
    parts.append(f"Seed {report.seed}." + (f"  Again: {report.replay}" if report.replay else ""))
    return "\n\n".join(parts)


def ordered(report: "Report") -> list["Pair"]:
    """The pairs, the worst last; first, if the report is read from there."""
    return sorted(report.pairs, key=severity, reverse=report.worst_first)


def severity(pair: "Pair") -> tuple[bool, float]:
    return pair.wrong, pair.worst.severity


def worst(report: "Report") -> list["Pair"]:
    """The wrong pairs of which details are given."""
    wrong = [pair for pair in ordered(report) if pair.wrong]
    return wrong[:MOST] if report.worst_first else wrong[-MOST:]


def unsaid(report: "Report") -> list[str]:
    """The sentence that there are more wrong pairs, if there are."""
    rest = sum(pair.wrong for pair in report.pairs) - MOST
    return [f"{rest} more {'are' if rest > 1 else 'is'} wrong: see the table."] if rest > 0 else []


def undecided(report: "Report") -> list[str]:
    """Why some gradients could not be judged: a sentence for each."""
    pairs = [pair for pair in ordered(report) if pair.worst.status == "undecided" and pair.worst.why]
    return [f"The gradient of {pair.output} with respect to {pair.input} could not be judged: {pair.worst.why}."
            for pair in pairs[:MOST]]


def summary(report: "Report") -> str:
    """One sentence: how many gradients are wrong, and of how many nothing can be said."""
    count = len(report.pairs)
    wrong = sum(pair.wrong for pair in report.pairs)
    unclear = sum(pair.worst.status == "undecided" for pair in report.pairs)
    gradients = f"{count} gradient{'s' * (count != 1)}"
    if wrong:
        found = f"{wrong} of {gradients} {'are' if wrong != 1 else 'is'} wrong"
    elif unclear:
        found = f"{unclear} of {gradients} could not be judged"
    elif report.faults:
        found = f"{gradients} right, but {report.faults[0].kind}"
    else:
        found = f"{gradients} right"
    if not count and report.faults:
        found = report.faults[0].kind
    return f"{report.function}: {found}"


def table(pairs) -> str:
    """The lines of the table, in columns."""
    lines = [HEAD, BELOW, *map(cells, pairs)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    widths[:2] = names_fit(widths)
    marks = [GAP, GAP, *("* " if pair.wrong else GAP for pair in pairs)]
    return "\n".join(mark + GAP.join(shortened(cell, width).ljust(width)
                                     for cell, width in zip(line, widths, strict=True)).rstrip()
                     for mark, line in zip(marks, lines, strict=True))


def names_fit(widths) -> list[int]:
    """The widths of the columns of names, so that a line fits in WIDTH; short names keep theirs."""
    free = WIDTH - sum(widths[2:]) - len(GAP) * len(widths)
    names = widths[:2]
    while sum(names) > free and max(names) > NARROW:
        names[names.index(max(names))] -= 1
    return names


def shortened(name: str, width: int) -> str:
    """The name in this width: its first parts are cut, down to their initials, then its middle.

    >>> from pyllama.testing.report.text import shortened
    >>> shortened("model.layers.0.mlp.up_proj.weight", 24)
    'm.l.0.mlp.up_proj.weight'
    """
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        excess = len(".".join(parts)) - width
        if excess > 0 and not part.isdigit():
            parts[place] = part[:max(1, len(part) - excess)]
    brief = ".".join(parts)
    start = width // 3
    return brief if len(brief) <= width else brief[:start] + "…" + brief[start + 1 - width:]


def cells(pair: "Pair") -> tuple[str, ...]:
    """The columns of a pair: its worst verdict."""
    worst = pair.worst
    nothing = worst.claimed != worst.claimed and worst.measured != worst.measured
    claimed, measured = ("", "") if nothing else apart(worst.claimed, worst.measured)
    return pair.input, pair.output, worst.method, claimed, measured, inequality(worst), worst.status


def inequality(verdict: "Verdict") -> str:
    """`error ≤ tolerance`, or with > if it is not; empty if nothing was compared."""
    error, tolerance = verdict.error, verdict.tolerance
    if error != error and tolerance != tolerance:
        return ""
    left, right = apart(error, tolerance, digits=3)
    return f"{left} {'≤' if error <= tolerance else '>'} {right}" if error == error else f"{left}, not ≤ {right}"


def apart(a: float, b: float, digits: int = 6) -> tuple[str, str]:
    """Both numbers in few digits, so that they look equal only if they are.

    Numbers that differ after the ninth digit are written as a and a plus the difference.

    >>> from pyllama.testing.report.text import apart
    >>> apart(0.25, 0.5), apart(1 / 3, 1 / 3 + 1e-8), apart(1 / 3, 1 / 3 + 1e-13)
    (('0.25', '0.5'), ('0.33333333', '0.33333334'), ('0.333333', '0.333333 + 1e-13'))
    """
    for precision in range(digits, 10):
        left, right = f"{a:.{precision}g}", f"{b:.{precision}g}"
        if left != right or a == b or a != a:
            return left, right
    left, gap = f"{a:.{digits}g}", b - a
    return left, f"{left} {'+' if gap > 0 else '-'} {abs(gap):.2g}"


def details(pair: "Pair") -> str:
    """What is wrong with a pair, in words."""
    lines = [wrapped(title(pair))]
    lines += [wrapped(sentence, "    ") for sentence in pair.diagnoses]
    lines += [wrapped(explained(verdict), "    ") for verdict in pair.verdicts if verdict.status == "wrong"]
    return "\n".join(lines)


def title(pair: "Pair") -> str:
    """Which gradient is wrong, where it is most wrong, and for which inputs."""
    place = "" if pair.index is None else f" at [{', '.join(map(str, pair.index))}]"
    where = "" if pair.where == "as given" else f" ({pair.where})"
    return f"The gradient of {pair.output} with respect to {pair.input} is wrong{place}{where}:"


def explained(verdict: "Verdict") -> str:
    """A wrong verdict as a sentence: its own, or the inequality with its numbers."""
    if verdict.why:
        return f"By {verdict.method}: {verdict.why}"
    claimed, measured = apart(verdict.claimed, verdict.measured)
    return (f"By {verdict.method}: claimed {claimed} (back says), measured {measured} (f does); "
            f"|claimed - measured| = {inequality(verdict)}")


def wrapped(sentence: str, indent: str = "") -> str:
    """The sentence on lines that fit."""
    return textwrap.fill(sentence, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
                         break_long_words=True, break_on_hyphens=False)
