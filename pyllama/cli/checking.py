"""The command check: the gradients of ops, and of any function."""
from typing import Literal

import numpy as np

from pyllama import backend
from pyllama.cli.inspect import chosen
from pyllama.errors import UserError
from pyllama.testing import WrongGradient
from pyllama.testing import check as check_op
from pyllama.testing.slopes import EXACT


def check(names: tuple[str, ...] = (), /, all: bool = False, problems: int = 50, seed: int = 0,
          on: Literal["numpy", "cpu"] | None = None) -> int:
    """Check backward passes against the exact derivative of the forward pass.

    Prints the largest error of each op and where it occurs.  The exit code is 1 if an error exceeds 1e-11, or the
    tolerance of differences if the forward pass is not holomorphic.

    Args:
        names: ops to check (default: all)
        all: check all ops
        problems: random problems for each op
        seed: seed of the problems
        on: check only this backend (default: every backend of the op)
    """
    if on and on not in backend.available():
        raise UserError(f"the backend {on!r} is not available: {backend.why_no_cpu}")
    if problems < 1:
        raise UserError(f"problems is {problems}; it must be at least 1")
    checked = chosen(() if all else names)
    if on and names and not all and (lacking := [op.name for op in checked if on not in op.backends()]):
        raise UserError(f"{lacking[0]} has no {on} kernel to check; remove --on {on}")
    if not backend.cpu:
        print(f"no C kernels: {backend.why_no_cpu}")
    worst = 0.0
    failed = False
    print(f"{'op':22}{'backend':9}{'error':9}largest for")
    for op in checked:
        for name in [on] if on in op.backends() else [] if on else op.backends():
            print(f"{op.name:22}{name:9}", end="")
            try:
                with backend.use(name):
                    finding = check_op(op, seed, problems)
            except (TypeError, ValueError, WrongGradient) as error:             # not even a gradient
                failed = True
                print(error)
                continue
            failed |= finding.wrong
            worst = max(worst, finding.error) if finding.error == finding.error else np.inf
            print(f"{finding.error:<9.1e}{described(finding)}")
    print(f"largest error {worst:.1e}, " +
          (f"at most the {EXACT:.0e} that rounding explains" if worst <= EXACT else
           f"more than the {EXACT:.0e} that rounding explains" if failed else
           "which differences explain: an exact derivative needs a holomorphic forward pass"))
    return 1 if failed else 0


def described(finding):
    """The problem of a finding, in a line."""
    options = "".join(f", {k}={v:.3g}" if isinstance(v, float) else f", {k}={v}" for k, v in finding.options.items())
    how = f"; by differences, tolerance {finding.tolerance:.1e}" if finding.method == "differences" else ""
    return f"{finding.input} of {' '.join(map(str, finding.shapes))}{options}{how}"
