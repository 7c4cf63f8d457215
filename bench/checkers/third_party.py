"""gradcheck on functions of other libraries: right gradients pass, wrong ones fail, planted bugs are named.

    make bench-checkers                         all libraries, in an environment of its own (.checkers)
    make bench-checkers ARGS="autograd torch"   these
    make bench-checkers ARGS="--all"            a line for every function, not only for those that say something

Exit code 1 if a verdict is not the expected one, or if autograd has a VJP that is neither checked nor left out.
"""
import argparse
import importlib
import os
import sys

from bench.checkers.third_party_case import RIGHT, WRONG, judged

SUITES = {
    "autograd": "autograd: NumPy VJPs",
    "mygrad": "mygrad: operations",
    "torch": "torch.autograd.Functions",
    "torch_ops": "torch: its own operations",
    "numba": "numba: kernels",
    "jax": "JAX: functions with custom_vjp, and its own",
    "second": "second derivatives of torch and JAX",
    "planted": "planted bugs",
}


# The arrays are small: threads would only wait.  Read when a library is imported, which run() does.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
              "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="a line for every function")
    options = parser.parse_args()
    if unknown := {*options.suites} - {*SUITES}:
        parser.error(f"{min(unknown)} is not one of {', '.join(SUITES)}")
    os.environ.update(ONE_THREAD)
    unexpected = sum(run(name, options) for name in options.suites or SUITES)
    print(f"\n{unexpected} unexpected" if unexpected else "\nEvery verdict is as expected.")
    return 1 if unexpected else 0


def run(name, options):
    """Check a suite, print its table, return the number of unexpected verdicts."""
    suite = importlib.import_module(f"bench.checkers.third_party_{name}")
    outcomes = []
    for number, case in enumerate(cases := list(suite.cases()), 1):
        progress(f"{name} {number}/{len(cases)} {case.name}")
        outcomes.append(judged(case, options.seed))
    progress("")
    passed = sum(outcome.passed for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"\n{SUITES[name]}: {len(outcomes)} checked, {passed} pass, {seconds:.1f} s")
    for outcome in outcomes:
        if options.all or not outcome.as_expected or outcome.case.expected != RIGHT:
            show(outcome)
    left_out = getattr(suite, "LEFT_OUT", {})
    for function, reason in left_out.items():
        print(f"  left out    {function}: {reason}")
    missing = forgotten(suite, outcomes, left_out)
    for function in missing:
        print(f"  MISSING     {function}: neither checked nor left out")
    return len(missing) + sum(not outcome.as_expected for outcome in outcomes)


def progress(text):
    """Show what is being checked, where the line can be written over."""
    if sys.stderr.isatty():
        print(f"\r{text:60.60}\r", end="", file=sys.stderr, flush=True)


def show(outcome):
    """A line: the verdict, the function, what was expected, what the report said."""
    case = outcome.case
    verdict = ("" if outcome.as_expected else "UNEXPECTED ") + ("passes" if outcome.passed else "fails")
    known = "" if case.expected in {RIGHT, WRONG} else f" ({case.expected})"
    method = f" by {outcome.method}" if outcome.method else ""
    print(f"  {verdict:11} {case.name}{known}: {outcome.said or f'{outcome.error:.1e} of the tolerance{method}'}")


def forgotten(suite, outcomes, left_out):
    """The library's functions that no case has, if the suite lists them; a case begins with the function's name."""
    listed = suite.primitives() if hasattr(suite, "primitives") else set()
    return sorted(listed - {outcome.case.name.split()[0] for outcome in outcomes} - {*left_out})


if __name__ == "__main__":
    sys.exit(main())
