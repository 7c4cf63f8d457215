"""The bugs of the catalogue and right gradients under the decision rules of other gradient checkers.

    make bench-checkers                                        in an environment with torch, JAX and autograd
    python -m bench.checkers.rules                             writes docs/checkers.md, without rules of absent packages
    python -m bench.checkers.rules --rules torch --cases 100   these rules, with so many right gradients

Each rule is measured by itself, and its row is kept in build/rules.json: a run that was stopped goes on from there.
Remove the file to measure anew.
"""
import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pyllama.ops  # noqa: F401 -- registers the ops
from bench.checkers import rules_packages as packages
from bench.checkers import rules_written as written
from bench.checkers.rules_cases import NORMS, Case, right, shown, with_ones
from bench.checkers.rules_page import page
from pyllama.testing.catalogue import bugs, planted

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build/rules.json"
CASES = 10_000                              # right gradients for each rule
BATCH = 500                                 # of these between two writes


class Rule(NamedTuple):
    """A checker with its settings.

    alarms      alarms(case, rng): does it find the case wrong?
    package     that must be installed; "": none
    share       of the right gradients that it is given: slow ones get fewer
    """
    checker: str
    setting: str
    dtype: str
    alarms: Callable
    package: str = ""
    share: float = 1.0

    @property
    def key(self):
        return f"{self.checker}, {self.setting}, {self.dtype}"


def of(function, **options):
    return functools.partial(function, **options)


STRICT = {"atol": 1e-7, "rtol": 1e-5}
RULES = [
    Rule("pyllama gradcheck", "default", "float64", packages.ours),
    Rule("pyllama gradcheck", "default", "float32", packages.ours),
    Rule("torch gradcheck", "default", "float64", packages.torch_gradcheck, "torch", 0.1),
    Rule("torch gradcheck", "atol 1e-7, rtol 1e-5", "float64", of(packages.torch_gradcheck, **STRICT), "torch", 0.1),
    Rule("torch gradcheck", "default", "float32", packages.torch_gradcheck, "torch", 0.1),
    Rule("torch gradcheck", "fast_mode", "float64", of(packages.torch_gradcheck, fast_mode=True), "torch"),
    Rule("torch gradcheck", "fast_mode, atol 1e-7, rtol 1e-5", "float64",
         of(packages.torch_gradcheck, fast_mode=True, **STRICT), "torch"),
    Rule("JAX check_vjp", "default", "float32", packages.jax_check_vjp, "jax"),
    Rule("JAX check_vjp", "default", "float64", packages.jax_check_vjp, "jax"),
    Rule("JAX check_vjp", "eps 1e-5, atol and rtol 1e-7", "float64",
         of(packages.jax_check_vjp, eps=1e-5, atol=1e-7, rtol=1e-7), "jax"),
    Rule("autograd check_grads", "default (no others)", "float64", packages.autograd_check_grads, "autograd"),
    Rule("autograd check_grads", "default (no others)", "float32", packages.autograd_check_grads, "autograd"),
    Rule("chainer check_backward†", "default", "float32", written.chainer),
    Rule("chainer check_backward†", "dtype=float64", "float64", of(written.chainer, dtype="float64")),
    Rule("dezero gradient_check†", "default", "float64", written.dezero),
    Rule("dezero gradient_check†", "atol 1e-8, rtol 1e-6", "float64", of(written.dezero, atol=1e-8, rtol=1e-6)),
    Rule("numpy-ml's tests†", "3 decimals", "float64", written.numpy_ml),
    Rule("numpy-ml's tests†", "10 decimals", "float64", of(written.numpy_ml, decimals=10)),
    Rule("minitorch grad_check†", "default", "float64", written.minitorch),
    Rule("minitorch grad_check†", "20 times", "float64", of(written.minitorch, times=20)),
    Rule("llm.c's test†", "2e-2", "float64", written.llm_c),
    Rule("llm.c's test†", "1e-8", "float64", of(written.llm_c, atol=1e-8)),
]


def verdicts(rule: Rule, change: Callable[[Case], Case], ops=None) -> dict[str, list[bool]]:
    """For each bug, at the problems it is shown at: does the rule alarm?"""
    found = {}
    for bug in bugs():
        if ops and bug.op not in ops:
            continue
        cases = [change(case) for case in shown(bug, rule.dtype)]
        with planted(bug):
            found[str(bug)] = [rule.alarms(case.fresh(), np.random.default_rng(seed))
                               for seed, case in enumerate(cases)]
    return found


def measured(rule: Rule, cases: int, row: dict):
    """Yield the row of a rule, which grows from what is there already until it has so many right gradients."""
    row = row or {"drawn": verdicts(rule, lambda case: case), "ones": verdicts(rule, with_ones, NORMS),
                  "cases": 0, "alarms": {}, "milliseconds": 0.0}
    count = max(1, round(cases * rule.share))
    while row["cases"] < count:
        seconds = []
        for seed in range(row["cases"], min(count, row["cases"] + BATCH)):
            case = right(seed, rule.dtype).fresh()
            start = time.process_time()
            wrong = rule.alarms(case, np.random.default_rng(seed))
            seconds.append(time.process_time() - start)
            if wrong:
                row["alarms"][case.op.name] = row["alarms"].get(case.op.name, 0) + 1
        row["cases"] += len(seconds)
        row["milliseconds"] = row["milliseconds"] or 1e3 * float(np.median(seconds))
        yield row


def installed(rule: Rule) -> bool:
    return not rule.package or importlib.util.find_spec(rule.package) is not None


def kept() -> dict:
    return json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}


def keep(key: str, row: dict) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept() | {key: row}), "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", nargs="*", default=[], metavar="WORD", help="whose name has one of these words")
    parser.add_argument("--cases", type=int, default=CASES, help=f"right gradients for each rule (default {CASES})")
    options = parser.parse_args()
    for package in sorted({rule.package for rule in RULES if not installed(rule)}):
        print(f"{package} is not installed: its rules are left out")
    for rule in filter(installed, RULES):
        if not options.rules or any(word in rule.key for word in options.rules):
            for row in measured(rule, options.cases, kept().get(rule.key, {})):
                keep(rule.key, row)
                print(f"{rule.key}: {row['cases']} right gradients, {sum(row['alarms'].values())} alarms", flush=True)
    rows = kept()
    text = page([(rule, rows[rule.key]) for rule in RULES if rule.key in rows])
    (ROOT / "docs/checkers.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
