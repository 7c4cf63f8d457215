"""The bugs that a page shows: what each one changes, and what the check says of it; one more is the exercise."""
from html import escape

import failing
from kept import keep

from pyllama.op import OPS
from pyllama.testing import catalogue, check
from pyllama.testing.catalogue import Bug, planted
from pyllama.testing.report import Report

PROBLEMS = 5, 20, 50                                        # few show most bugs; options that are rare need more


def shown(name: str) -> list[Bug]:
    """The bugs of an op that happened somewhere, else the first ones."""
    every = catalogue.bugs(name)
    return [bug for bug in every if bug.cited] or every[:3]


def exercise(name: str) -> tuple[int, Bug]:
    """(its number in the dojo, the bug): the first of the op that the page does not show."""
    on_the_page = shown(name)
    return next((number, bug) for number, bug in enumerate(catalogue.bugs(name), 1) if bug not in on_the_page)


def patch(bug: Bug) -> str:
    lines = f"<del>{escape(bug.before)}</del>\n<ins>{escape(bug.after)}</ins>"
    return f'<pre class="patch" tabindex="0"><code>{lines}</code></pre>'


def planting(bug: Bug) -> str:
    """The lines of the code with the bug, which site.js puts in the place of those without."""
    lines = failing.patch(bug)
    return (f'<pre class="planting" data-first="{lines.first}" data-last="{lines.last}" hidden>'
            f'{escape(lines.code)}</pre>')


def source(bug: Bug) -> str:
    return f'<p class="source" lang="en">{escape(bug.source)}</p>'


def complaint(bug: Bug) -> str:
    """What the check says of an op with this bug.  Raises ValueError if it does not find the bug."""
    said = " ".join(keep(f"complaint of {bug}", lambda: checked(bug)))
    return f'<p class="complaint" lang="en">{escape(said)}</p>'


def checked(bug: Bug) -> list[str]:
    with planted(bug):
        for problems in PROBLEMS:
            report = check(OPS[bug.op], problems=problems)
            if not report:
                return sentences(report)
    raise ValueError(f"{bug}: the check finds nothing wrong")


def sentences(report: Report) -> list[str]:
    """The gradient that is most wrong and its diagnosis; else the first fault."""
    wrong = [pair for pair in report.pairs if pair.wrong]
    if not wrong:
        return [report.faults[0].sentence]
    worst = max(wrong, key=lambda pair: pair.worst.severity)
    return [f"The gradient of {worst.output} with respect to {worst.input} is wrong.", *worst.diagnoses[:1]]
