"""A report as HTML for notebooks: one self-contained fragment, readable on light and dark backgrounds."""
from html import escape
from typing import TYPE_CHECKING

from pyllama.testing.report import text

if TYPE_CHECKING:
    from pyllama.testing.report import Pair, Report

# Text keeps the color of the page.  Backgrounds let the page shine through, so one style serves any theme.
STYLE = """
.pyllama-report { font: 14px/1.5 system-ui, sans-serif; color: inherit }
.pyllama-report table { border-collapse: collapse }
.pyllama-report th, .pyllama-report td { padding: 3px 12px; text-align: left; border-bottom: 1px solid #8885 }
.pyllama-report td.number { font-family: ui-monospace, monospace; white-space: nowrap }
.pyllama-report small { display: block; font-weight: normal; opacity: .75 }
.pyllama-report tr.wrong { background: #e5484d33 }
.pyllama-report tr.undecided { background: #f5a62333 }
.pyllama-report .verdict { font-weight: bold }
.pyllama-report pre { padding: 8px 12px; background: #8882; color: inherit; overflow-x: auto }
"""
NUMBERS = range(3, 6)                                   # columns


def html(report: "Report") -> str:
    """The report as a <div> with its style."""
    pairs = text.ordered(report)
    parts = [f"<p><b>{escape(text.summary(report))}</b></p>"]
    if pairs:
        parts.append(table(pairs))
    parts += [details(pair) for pair in text.worst(report)]
    parts += [f"<p>{escape(sentence)}</p>" for sentence in [*text.unsaid(report), *text.undecided(report)]]
    parts += [paragraph(f"Fault ({fault.kind})", fault.sentence) for fault in report.faults]
    parts += [paragraph("Note", note) for note in report.notes]
    if report.skipped:
        parts.append(paragraph("Skipped", "; ".join(report.skipped)))
    if report.case:
        parts.append(f"<p>The smallest failing case:</p><pre>{escape(report.case)}</pre>")
    again = f" Again: <code>{escape(report.replay)}</code>" if report.replay else ""
    parts.append(f"<p>Seed {report.seed}.{again}</p>")
    return f'<div class="pyllama-report"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</div>"


def table(pairs) -> str:
    """The table, a row for each pair."""
    heads = "".join(f"<th>{escape(head)}{f'<small>{escape(below)}</small>' if below else ''}</th>"
                    for head, below in zip(text.HEAD, text.BELOW, strict=True))
    return f"<table><tr>{heads}</tr>{''.join(map(row, pairs))}</table>"


def row(pair: "Pair") -> str:
    """A line of the table."""
    *cells, verdict = text.cells(pair)
    columns = [f'<td class="number">{escape(cell)}</td>' if column in NUMBERS else f"<td>{escape(cell)}</td>"
               for column, cell in enumerate(cells)]
    return f'<tr class="{escape(verdict)}">{"".join(columns)}<td class="verdict">{escape(verdict)}</td></tr>'


def details(pair: "Pair") -> str:
    """What is wrong with a pair, a list of sentences."""
    sentences = [*pair.diagnoses, *(text.explained(v) for v in pair.verdicts if v.status == "wrong")]
    return f"<p>{escape(text.title(pair))}</p><ul>{''.join(f'<li>{escape(s)}</li>' for s in sentences)}</ul>"


def paragraph(kind: str, sentence: str) -> str:
    """A remark below the table."""
    return f"<p><b>{escape(kind)}:</b> {escape(sentence)}</p>"
