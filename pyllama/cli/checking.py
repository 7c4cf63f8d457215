"""The command check: the gradients of ops, and of any function."""
from typing import Literal

from pyllama import backend
from pyllama.cli.inspect import chosen
from pyllama.errors import UserError
from pyllama.testing import check as check_op


def check(names: tuple[str, ...] = (), /, all: bool = False, problems: int = 50, seed: int = 0,
          on: Literal["numpy", "cpu"] | None = None) -> int:
    """Check backward passes against the exact derivative of the forward pass.

    Prints the largest error of each op, as a share of its tolerance, and the input it belongs to.  The exit code is 1
    if a gradient is wrong.

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
                    report = check_op(op, seed, problems)
            except (TypeError, ValueError) as error:                            # not even a gradient
                failed = True
                print(error)
                continue
            failed |= not report
            worst = max(worst, report.error)
            wrong = [fault.sentence for fault in report.faults] or ["" if report else "is wrong"]
            where = report.pairs[-1].input if report.pairs else ""
            print(f"{report.error:<9.1e}{where} {wrong[0]}".rstrip())
    print(f"largest error {worst:.1e} of what rounding and differences explain")
    return 1 if failed else 0
