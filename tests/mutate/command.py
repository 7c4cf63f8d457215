"""Measure the mutation score of our tests.

Plants small bugs in the ops' Python functions and in the C kernels, one at a time, and runs the tests on each.  A bug
that no test notices survives.  The exit status is 0 if tests/survivors.toml lists every survivor, with the reason why
it is not a bug, and if the tests notice at least 95 % of the bugs in forward passes.

With --cuda the bugs are those of tests/cuda_bugs.toml in the CUDA kernels; the tests must notice all of them.
"""
import argparse
import json
import tomllib
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import pyllama.ops  # noqa: F401 -- registers
from pyllama import backend, cuda_text
from pyllama.op import OPS
from pyllama.testing.mutation.forks import NO_MUTANT, SURVIVED
from tests.mutate import c_mutants, cuda_bugs, python_mutants
from tests.mutate.hunt import Hunt
from tests.mutate.judge import judge
from tests.mutate.python_mutants import ROOT

KERNELS = {path.stem: path for path in sorted((ROOT / "csrc/cpu").glob("*.[ch]"))
           if path.stem not in ("arena", "dispatch", "table")}      # what holds mathematics
ENOUGH = 95                                                 # percent of the forward mutants of all ops
INTERRUPTED = 2                                             # pytest's status after Ctrl-C


def main(words=None):
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="op", help="only these, or other files of csrc/cpu: gemm, real, ...")
    parser.add_argument("--python", action="store_true", help="only the ops' Python functions")
    parser.add_argument("--c", action="store_true", help="only the C kernels")
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels, which no other option includes")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every mutant and whether it survived")
    options = parser.parse_args(words)
    known = {*OPS, *(cuda_text.files() if options.cuda else KERNELS)}
    if wrong := set(options.ops) - known:
        parser.error(f"{', '.join(wrong)}: not among {', '.join(sorted(known))}")
    mutants = chosen(options)

    verdicts, found = {}, {}
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
                  console=Console(stderr=True), auto_refresh=False) as progress:   # its thread would not survive a fork
        bar = progress.add_task("the tests without a bug", total=len(mutants))
        progress.refresh()

        def report(mutant, status):
            verdicts[mutant] = status
            if options.cuda:
                found[mutant] = hunt.found_by(mutant, status)
            if status == SURVIVED:
                progress.console.print(mutant.where, mutant.function, mutant.change, markup=False, soft_wrap=True)
            progress.update(bar, advance=1, description=mutant.unit, refresh=True)

        hunt = (cuda_bugs.CudaHunt if options.cuda else Hunt)(mutants, options.jobs, report)
        status = hunt.run()
    if status:
        return 130 if status == INTERRUPTED else f"no verdict: pytest ended with {status!r}"
    verdicts = {mutant: status == SURVIVED for mutant, status in verdicts.items() if status != NO_MUTANT}
    if options.json:
        options.json.write_text(json.dumps([{**m._asdict(), "survived": s} for m, s in verdicts.items()], indent=1))
    for test in sorted(hunt.left_out):
        print("left out, because it fails or takes too long without a bug:", test)
    if options.cuda:
        return 0 if cuda_bugs.judge({bug: found[bug] for bug in mutants}) else 1
    reasons = tomllib.loads((ROOT / "tests/survivors.toml").read_text())
    return 0 if judge(verdicts, reasons, enough=0 if options.ops else ENOUGH) else 1


def chosen(options):
    every, both = not options.ops, options.python == options.c
    if options.cuda:
        return [bug for bug in cuda_bugs.bugs() if every or {bug.function, Path(bug.unit).stem} & {*options.ops}]
    mutants = []
    for op in OPS.values():
        if (every or op.name in options.ops) and (both or options.python):
            mutants += python_mutants.mutants_of(op)
    for name, path in KERNELS.items():
        if backend.cpu and (every or name in options.ops) and (both or options.c):
            mutants += c_mutants.mutants_of(path)
    return mutants
