"""The page of --gradcheck-report: a row for each test, failures first; one file without scripts or links."""
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: 4px 12px; text-align: left; border-bottom: 1px solid #8885 }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums }
tr.failed { background: #e5484d33 }
pre { padding: 8px 12px; background: #8882; overflow-x: auto }
summary { cursor: pointer }
"""
HEADS = ("test", "outcome", "worst error / tolerance", "examples", "seconds", "seed")
NUMBERS = HEADS[2:]


def write(path: str, reports: Sequence[Any]) -> None:
    """Write the page to a file, whose folder is made if need be.  Raises OSError if that fails."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(reports), encoding="utf-8")


def page(reports: Sequence[Any]) -> str:
    """The page of pytest's reports; each has `gradcheck`, the facts of run.py."""
    ordered = sorted(reports, key=lambda report: (report.outcome != "failed", -severity(report), report.nodeid))
    failed = sum(report.outcome == "failed" for report in reports)
    title = f"gradcheck: {len(reports)} tests, {failed} failed"
    heads = "".join(f'<th class="number">{head}</th>' if head in NUMBERS else f"<th>{head}</th>" for head in HEADS)
    rows = "\n".join(map(row, ordered))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>An error of 1 tolerance or less is rounding, or the error of what the gradient is compared with.</p>
<table>
<tr>{heads}</tr>
{rows}
</table>
</body>
</html>
"""


def severity(report) -> float:
    error = float(report.gradcheck["error"])
    return math.inf if math.isnan(error) else error


def row(report) -> str:
    """The line of a test, and what it says if it failed."""
    facts = report.gradcheck
    cells = (f"{facts['error']:.2g}", facts["examples"], f"{facts['seconds']:.2f}", facts["seed"])
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    line = f'<tr class="{report.outcome}"><td>{escape(report.nodeid)}</td><td>{report.outcome}</td>{numbers}</tr>'
    if report.outcome != "failed":
        return line
    message = facts["message"] or f"{report.longreprtext}\n\n{facts.get('drawn', '')}"
    return f'{line}\n<tr><td colspan="{len(HEADS)}"><details open><summary>Report</summary>' \
           f"<pre>{escape(message)}</pre></details></td></tr>"
