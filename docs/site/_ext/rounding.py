"""The rows of the tables on rounding: sums, the kernels' exponential, and the errors of ops in float32."""
import math
import re
from collections.abc import Iterator

import numpy as np
from places import ROOT

import pyllama.ops  # noqa: F401                            registers all ops
from pyllama import backend
from pyllama.op import OPS, Op
from pyllama.testing.accuracy import results
from pyllama.testing.problems import choose_by, packed, problem
from pyllama.testing.trees import in_float64

REAL = ROOT / "csrc" / "cpu" / "real.h"
F32 = np.finfo("float32")
LANES = 16                                                  # numbers of float32 in 512 bits
DRAWS = 8                                                   # of each sum
PROBLEMS = 40                                               # of each op
POINTS = 1_000_001                                          # of the exponential
RANGES = {"float32": (-87, 88), "float64": (-708, 709)}     # where results are normal numbers


# --- sums -------------------------------------------------------------------------------------------------------------

def in_order(x: np.ndarray) -> np.ndarray:
    """The sum along the first axis, one number after another in the precision of x."""
    return np.cumsum(x, axis=0, dtype=x.dtype)[-1]


def in_lanes(x: np.ndarray) -> np.ndarray:
    """The same, as a vector register of LANES numbers does it."""
    return in_order(in_order(x.reshape(-1, LANES)))


def sums() -> Iterator[tuple[str, ...]]:
    """The largest error of sums of positive float32 numbers, in units of half an epsilon."""
    rng = np.random.default_rng(0)
    for n in 2 ** np.arange(8, 21, 4):
        draws = rng.random((DRAWS, n), np.float32)
        worst = [max(error(way(x), x) for x in draws) for way in (in_order, in_lanes, np.sum)]
        yield f"{n:,}", *(f"{one:,.1f}" for one in worst), f"{n - 1:,}"


def error(total: np.ndarray, x: np.ndarray) -> float:
    exact = float(x.sum(dtype=np.float64))                  # 29 more bits, and in pairs
    return abs(float(total) - exact) / exact / (F32.eps / 2)


# --- the exponential --------------------------------------------------------------------------------------------------

def degrees() -> list[int]:
    """The degree of the polynomial in csrc/cpu/real.h, of float and of double."""
    return [int(degree) for degree in re.findall(r"TERMS = (\d+)", REAL.read_text("utf-8"))]


def exponentials() -> Iterator[tuple[str, ...]]:
    """Errors in epsilons; in units in the last place where they are measured."""
    for dtype, degree in zip(RANGES, degrees(), strict=True):
        left_out = (math.log(2) / 2) ** (degree + 1) / math.factorial(degree + 1)
        worst = largest_error(dtype)
        yield (dtype, str(degree), f"{left_out / np.finfo(dtype).eps:.2f} ε", f"{worst:.2f} ulp" if worst else "–")


def largest_error(dtype: str) -> float:
    """Of the kernels' exponential on a grid, in ulp; 0 if no type of this machine is exact enough to say so."""
    wide = np.float64 if dtype == "float32" else np.longdouble
    if np.finfo(wide).eps > np.finfo(dtype).eps / 100:
        return 0
    x = np.linspace(*RANGES[dtype], POINTS).astype(dtype)
    exact = np.exp(x.astype(wide))
    return float(np.max(np.abs(backend.cpu._exp(x) - exact) / np.spacing(exact.astype(dtype))))


# --- ops --------------------------------------------------------------------------------------------------------------

def errors() -> Iterator[tuple[str, ...]]:
    """The largest errors of each op with a kernel, in epsilons."""
    for name in sorted(OPS):
        if hasattr(backend.cpu, name):
            outputs, gradients = worst(OPS[name])
            yield name, f"{outputs:.1f} ε", f"{gradients:.1f} ε"


def worst(op: Op) -> tuple[float, float]:
    """The largest error of the outputs, and of the gradients, of the kernel in float32 beside the reference in float64.

    Relative to the largest number of the result; to 1 if it is smaller, because numbers near 1 may cancel.
    """
    found = np.zeros(2)
    rng = np.random.default_rng(0)
    for _ in range(PROBLEMS):
        inputs, options, dy = problem(op, choose_by(rng), "float32")
        with backend.use("cpu"):
            got = results(op, inputs, options, dy)
        with backend.use("numpy"):
            exact = results(op, in_float64(inputs), options, packed(in_float64(op.each(dy))))
        relative = [np.abs(a - b).max(initial=0) / max(1, np.abs(b).max(initial=0)) / F32.eps
                    for a, b in zip(got, exact, strict=True)]
        outputs = len(op.outputs)
        found = np.maximum(found, [max(relative[:outputs]), max(relative[outputs:])])
    return float(found[0]), float(found[1])
