"""docs/checkers.md from the rows that rules.py measured."""
import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np

from pyllama.testing.catalogue import bugs

HEAD = """\
# Gradient checkers compared

The {count} bugs of the [catalogue](../pyllama/testing/catalogue), {cited} of which cite a place where they happened,
and thousands of right gradients, under the decision rules of nine gradient checkers. `make bench-checkers` measures all
of it, which takes about half an hour, and writes this page.

**killed**: the share of the bugs' problems at which the checker alarms. Each bug is shown at three problems at which it
changes what backward does; inputs and weights are standard normal. **never**: the bugs that it missed at all three.
**w = 1**: killed, for the {norms} bugs of norms, if the norms' weights are ones, as they are when training begins.
**false alarms**: of right gradients of all {ops} ops in turn. **ms**: the median time of a check of a right gradient.
†: the rule was written anew from its published definition, since the package is old or the rule is part of a test;
all others are the packages themselves.
"""

TAIL = """\
## What the table does not show

- The catalogue is ours. Its bugs were chosen to be plausible and small, and many were found by people whose checker was
  none of these. Another selection gives other percentages.
- Every checker got the same small problems with random inputs, weights and options, which is more than most tests give
  it. A bug that needs strided arrays is shown with ordinary ones: whether others are tried is up to the checker.
  Bugs that overwrite an array or spoil a second call of backward count as well; most checkers do not look for them.
- The reference of numpy-ml's and llm.c's tests is the right gradient itself, which a test gets from another library.
  llm.c's test also compares ten losses, which would find many of these bugs.
- A rule that alarms at nearly every right gradient kills every bug: read both columns together.
- Forward mode, second derivatives, complex numbers and speed on large functions are not compared.
- A false alarm in float32 is not a fault of a checker that is made for float64, as torch's is: it warns. The row shows
  what happens to those who ignore the warning. pyllama's computes in float64 wherever the function accepts that, as
  these do, so that its two rows are nearly the same check.
- The rare false alarms in float64 are kinks of ReLU within the step of a difference.
"""


def page(rows) -> str:
    listed = bugs()
    norms = len(next(iter(rows))[1]["ones"]) if rows else 0
    head = HEAD.format(count=len(listed), cited=sum(bug.cited for bug in listed), norms=norms,
                       ops=len({bug.op for bug in listed}))
    return "\n".join([head, *table(rows), "", *survivors(rows), "", TAIL, machine()])


def table(rows):
    yield "| checker | setting | dtype | killed | never | w = 1 | false alarms | ms |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for rule, row in rows:
        alarms = sum(row["alarms"].values())
        yield (f"| {rule.checker} | {rule.setting} | {rule.dtype} | {percent(row['drawn'])} | "
               f"{len(never(row['drawn']))} | {percent(row['ones'])} | {alarms:,} of {row['cases']:,} | "
               f"{row['milliseconds']:.1f} |")


def percent(verdicts) -> str:
    found = [alarm for alarms in verdicts.values() for alarm in alarms]
    share = 100 * np.mean(found)
    return "100 %" if all(found) else f"{min(share, 99.9):.1f} %"


def never(verdicts) -> list[str]:
    return [bug for bug, alarms in verdicts.items() if not any(alarms)]


def survivors(rows):
    yield "## Missed at all three problems"
    yield ""
    for rule, row in rows:
        missed = never(row["drawn"])
        names = ", ".join(f"`{bug}`" for bug in missed[:6]) + (f" and {len(missed) - 6} more" if missed[6:] else "")
        if missed:
            yield f"- {rule.checker}, {rule.setting}, {rule.dtype}: {names}"


def machine() -> str:
    versions = []
    for package in ("numpy", "torch", "jax", "autograd"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"Measured on {processor()}, one thread, Python {platform.python_version()}, {', '.join(versions)}.\n"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text("utf-8").splitlines()
             if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or os.uname().machine
