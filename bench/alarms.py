"""Count false alarms and misses of the gradient checker, on the functions of `functions.py`.

    python -m bench.alarms                      # 5,000 cases, each in float64 and in float32
    python -m bench.alarms --cases 500 --first 7000 --only softmax

A case is a function, inputs of a random shape, and scales of 1e-12 to 1e12 for the inputs and the outputs.  It runs

- through gradcheck, in float64, and as a function that accepts float32 alone;
- through the verdicts one by one: a line, order, entries, subgradients; and in float32 beside float64;
- through gradcheck with gradients that are wrong by a factor: 1 + 1e-6, 1.01, -1 and 0.

Correct cases must not alarm, and wrong ones must be caught, unless the gradient is zero anyway.
"""
import argparse
import collections
import functools
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from bench import array_functions  # noqa: F401 -- registers
from bench.functions import CASES, scaled
from pyllama.testing import gradcheck
from pyllama.testing.methods import compare, entries, kinks, order, precision
from pyllama.testing.methods.judge import shaken, verdict_of
from pyllama.testing.passes import flat
from pyllama.testing.report import Verdict
from pyllama.testing.trees import is_float

SCALES = 2.0 ** np.arange(-40, 41, 10)                 # 1e-12 to 1e12, exact in every precision


def drawn(k: int, only: str = "") -> tuple[str, Callable, list, np.random.Generator]:
    """(name, f, inputs, rng) of case k: every function in turn, first without scales."""
    names = [name for name in CASES if only in name]
    name, rng = names[k % len(names)], np.random.default_rng(k)
    a, b = rng.choice(SCALES, 2) if k >= len(names) else (1.0, 1.0)
    inputs = [np.asarray(x * a if is_float(x) else x) for x in CASES[name].draw(rng)]
    return name, scaled(CASES[name], a, b), inputs, rng


def times(f: Callable, factor: float) -> Callable:
    """f with gradients that are wrong by this factor."""
    def g(*inputs):
        y, back = f(*inputs)
        return y, lambda dy: tuple(d if d is None else (d * factor).astype(d.dtype) for d in back(dy))
    return g


def in_float32(f: Callable) -> Callable:
    """f, which accepts float32 alone."""
    def g(*inputs):
        assert all(x.dtype == np.float32 for x in inputs if is_float(x))
        return f(*inputs)
    return g


def lowered(inputs, dtype=np.float32) -> list:
    return [x.astype(dtype) if is_float(x) else x for x in inputs]


def line(f, inputs, i, move) -> Callable:
    """The outputs [M] of f, as a function of t, when move(x, t) takes the place of input i."""
    def along(*t):
        moved = [move(x, *t) if k == i else x for k, x in enumerate(inputs)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            y = flat(f(*moved)[0])
        return y.astype(np.result_type(y, float))
    return along


def at(x, index, t):
    moved = x.astype(np.result_type(x.dtype, np.complex64 if isinstance(t, complex) else x.dtype))
    moved[index] += t
    return moved


def along_line(x, v, t):
    return np.asarray(x + t * v).astype(np.result_type(x.dtype, np.complex64 if isinstance(t, complex) else x.dtype))


def verdicts(name, f, inputs, rng, few=4) -> Iterator[tuple[str, Verdict]]:
    """The verdicts one by one, on each input."""
    y, back = f(*inputs)
    outputs = y if isinstance(y, tuple) else (y,)
    dys = tuple(np.asarray(rng.standard_normal(np.shape(a))).astype(np.asarray(a).dtype) for a in outputs)
    eps, dy = max(float(np.finfo(a.dtype).eps) for a in inputs if is_float(a)), flat(dys).astype(float)
    size = float(np.abs(dy * flat(y)).sum())

    def gradients(arrays):
        return f(*arrays)[1](dys if isinstance(y, tuple) else dys[0])

    for i, dx in enumerate(back(dys if isinstance(y, tuple) else dys[0])):
        if dx is None or not dx.size:
            continue
        x = inputs[i]

        def again(k, index, i=i):
            beside = [shaken(x, np.random.default_rng(k)) for x in inputs]
            found = entries.entries(line(f, beside, i, at), dy, beside[i], eps, [index])
            return gradients(beside)[i][index], found.value[index]

        which = [tuple(int(rng.integers(n)) for n in x.shape) for _ in range(few)]
        found = entries.entries(line(f, inputs, i, at), dy, x, eps, which)
        yield "entries", compare.entrywise(found, dx, eps, again)[0]
        for v in (compare.direction(x, rng), *kinks.directions(x, rng)[:2]):
            along = functools.cache(line(f, inputs, i, lambda x, t, v=v: along_line(x, v, t)))
            claimed = compare.inner(dx, v)

            def neighbor(k, i=i, v=v):
                beside = [shaken(x, np.random.default_rng(k)) for x in inputs]
                return gradients(beside)[i], line(f, beside, i, lambda x, t: along_line(x, v, t))

            compared = compare.compare(name, along, dx, v, dy, y if isinstance(y, tuple) else (y,), neighbor)
            blur = compared.rounding if compared else compare.blur(dx, v, eps)
            if compared:
                yield "line", verdict_of(compared)
            yield "subgradients", kinks.verdict(along, dy, claimed, eps, blur)
            low, high, _ = kinks.subgradients(along, dy, eps)

            def phi(t, along=along):
                return float(dy @ along(t))

            yield "order", order.order(phi, claimed, eps, size, (high - low) / 2, blur)


def outputs_of(f, inputs) -> tuple:
    y = f(*inputs)[0]
    return y if isinstance(y, tuple) else (y,)


def rounded(f, inputs, seed) -> list[Verdict]:
    """The verdicts of precision.check() in float32."""
    def run(arrays, dys):
        y, back = f(*arrays)
        return (y, back(tuple(dys))) if isinstance(y, tuple) else ((y,), back(dys[0]))

    low, rng = lowered(inputs), np.random.default_rng(seed)
    dys = [np.float32(rng.standard_normal(np.shape(a))) for a in outputs_of(f, low)]
    return precision.check(run, low, dys, seed)


def vanishes(f, inputs) -> bool:
    """Is the gradient zero, up to rounding?  Then a factor makes nothing wrong."""
    y, back = f(*inputs)
    ones = tuple(np.ones(np.shape(a)) for a in (y if isinstance(y, tuple) else (y,)))
    shares = [np.abs(d * x).sum() for d, x in zip(back(ones if isinstance(y, tuple) else ones[0]), inputs, strict=True)
              if d is not None]
    return sum(shares) <= 1e-9 * sum(np.abs(a).sum() for a in outputs_of(f, inputs))


def counted(name, f, inputs, k) -> Iterator[tuple[str, str, str]]:
    """(kind, what was found, a line about it) for all that is done with one case."""
    def judged(f, arrays) -> str:
        report = gradcheck(f, arrays, raise_exception=False, budget=None, seed=k)
        wrong = report.faults or any(pair.wrong for pair in report.pairs)
        return "alarm" if wrong else "passed" if report else "undecided"

    for precision_of in ("float64", "float32"):
        arrays, f_in = (inputs, f) if precision_of == "float64" else (lowered(inputs), in_float32(f))
        yield f"gradcheck, {precision_of}", judged(f_in, arrays), name
        for method, verdict in verdicts(name, f_in, arrays, np.random.default_rng(k)):
            yield f"{method}, {precision_of}", "alarm" if verdict.status == "wrong" else verdict.status, verdict.why
    for verdict in rounded(f, inputs, k):
        yield "rounding, float32", "alarm" if verdict.status == "wrong" else verdict.status, verdict.why
    if not vanishes(f, inputs):
        least = 1 + 1e-6 if CASES[name].exact else 1.01
        for factor in (least, 1.01, -1.0, 0.0):
            caught = judged(times(f, factor), inputs) == "alarm"
            yield f"wrong by {factor:.9g}", "caught" if caught else "missed", name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=5000, help="each runs in float64 and in float32")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=np.inf, help="begin no case after so many")
    parser.add_argument("--only", default="", help="part of a function's name")
    args, counts = parser.parse_args(), collections.Counter()
    warnings.simplefilter("ignore")
    begin = time.monotonic()
    for k in range(args.first, args.first + args.cases):
        if time.monotonic() - begin > args.seconds:
            print(f"stopped before case {k}")
            break
        name, f, inputs, _ = drawn(k, args.only)
        with np.errstate(all="ignore"):
            for kind, result, why in counted(name, f, inputs, k):
                counts[kind, result] += 1
                if result in ("alarm", "missed"):
                    print(f"case {k}, {name}: {kind}: {result}: {why}", flush=True)
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind:30} {result:10} {count:7}")


if __name__ == "__main__":
    main()
