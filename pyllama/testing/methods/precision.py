"""How far may results in low precision be from those in float64?  As far as rounding explains, which is measured.

The same passes run in float32, float16 or bfloat16 and, on the same numbers, in float64.  What differs is rounding.

(a) Conditioning.  An operation that rounds does to what follows what a change of the inputs by an eps does to it
    (Wilkinson's backward errors).  So the inputs and dy are changed by an eps at random, in float64, and the change
    of each result is its share of one rounding.
(b) Length.  A chain of k roundings adds up to √k of them, if they are independent (Higham & Mary, 2019).  A sum of n
    terms, one after the other, is such a chain; 2 √n covers three of its standard deviations.  n is measured: how many
    numbers of an input does one result depend on?
(c) Cancellation.  Numbers of the size of the inputs may cancel within a function, as log Σ exp x − x does where one x
    dominates.  Their rounding does not show in (a), nor does one that breaks a symmetry which the inputs' changes
    keep.  Errors of that size, or of CHAIN times what (a) and (b) explain, leave the verdict undecided: the result has
    few digits, and it cannot be seen from outside whether another algorithm would have more.

What is beyond all of these is wrong: the function loses digits that it need not lose.
"""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyllama.testing.report import Verdict
from pyllama.testing.trees import in_float64, is_float

NEIGHBORS = 8                       # their mean square is below 1/25 of its expectation with probability 3e-5
CHAIN = 16                          # √k for a chain of 256 operations
PROBES = 4                          # numbers of each input that are changed alone
ILL = 3                             # digits lost to conditioning alone that are worth a note


class Bound(NamedTuple):
    """A result in float64 and its error bounds.

    exact       the result
    explained   per number: what conditioning and length explain
    cancelled   one number: what rounding explains if numbers of the size of the inputs cancel
    """
    exact: np.ndarray
    explained: np.ndarray
    cancelled: float


def finfo(dtype: np.dtype) -> Any:
    """np.finfo, of the dtypes of ml_dtypes, too: only arrays made with it have these, so it is there."""
    if dtype.kind == "f":
        return np.finfo(dtype)
    import ml_dtypes

    return ml_dtypes.finfo(dtype)


def check(run: Callable, inputs: Sequence[Any], dys: Sequence[Any], seed: int = 0,
          wide: type = np.float64) -> list[Verdict]:
    """A verdict for each output and each gradient, in this order, without the None of integer inputs.

    run      run(inputs, dys) -> (outputs, gradients): both passes, in whatever precision these have
    inputs   arrays in low precision, integers, None
    dys      an array for each output, in the precision of the output
    wide     the precision to compare with, float32 if run refuses float64

    Compares run on these arrays with run on the same numbers in float64.  Raises what run raises.

    >>> import numpy as np
    >>> from pyllama.testing.methods.precision import check
    >>> def variance(inputs, dys):
    ...     (x,), (dy,) = inputs, dys
    ...     return [np.mean(x * x) - np.mean(x) ** 2], [2 * dy * (x - np.mean(x)) / x.size]
    >>> x = (1000 + np.random.default_rng(0).standard_normal(100)).astype(np.float32)
    >>> [verdict.status for verdict in check(variance, [x], [np.float32(1)])]
    ['wrong', 'passed']
    """
    dtype = max((a.dtype for a in inputs if is_float(a)), key=lambda dtype: float(finfo(dtype).eps))
    got = listed(run(list(inputs), list(dys)))
    found = bounds(run, inputs, dys, float(finfo(dtype).eps), seed, wide)
    return [verdict(value, bound, dtype) for value, bound in zip(got, found, strict=True)]


def listed(results: tuple) -> list[np.ndarray]:
    """Outputs and gradients in one list, in float64, without None."""
    outputs, gradients = results
    return in_float64([np.asarray(a) for a in (*outputs, *gradients) if a is not None])


def bounds(run: Callable, inputs: Sequence[Any], dys: Sequence[Any], eps: float, seed: int = 0,
           wide: type = np.float64, chain: float | None = None) -> list[Bound]:
    """The Bound of each output and gradient of run, as in check(), for a precision of eps.

    chain   √k of a function whose results have k roundings; None: CHAIN, and more where its sums are long, as in (b)
    """
    rng, count = np.random.default_rng(seed), len(inputs)
    arrays = in_float64([*inputs, *map(np.asarray, dys)], wide)
    floats = [i for i, a in enumerate(arrays) if is_float(a) and a.size]

    def results(arrays) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            return listed(run(arrays[:count], arrays[count:]))

    def near(a):
        return np.asarray(a * (1 + eps * rng.choice([-1.0, 1.0], a.shape)), a.dtype) if is_float(a) else a

    exact = results(arrays)
    changes = [[np.square(b - a) for a, b in zip(exact, results(list(map(near, arrays))), strict=True)]
               for _ in range(NEIGHBORS)]
    chains = [chain] * len(exact) if chain else \
        [np.sqrt(CHAIN ** 2 + 4 * n) for n in terms(results, arrays, floats, exact, rng)]
    found, outputs = [], len(arrays) - count
    for k, a in enumerate(exact):
        change = np.sqrt(np.nanmean([change[k] for change in changes], axis=0)) if a.size else a
        cancelling = eps * sizes(exact, arrays, count, k < outputs)
        found.append(Bound(a, chains[k] * (change + eps * largest(a)),
                           chains[k] * (change.max(initial=0) + cancelling)))
    return found


def largest(a) -> float:
    return float(np.abs(a).max(initial=0, where=np.isfinite(a)))


def sizes(exact, arrays, count, of_output) -> float:
    """The largest number that may cancel in a result: of the inputs' size or, in a gradient, of dy and dy y / x.

    A common offset of an input, such as a mean that is subtracted, takes as many digits of y as of the differences.
    """
    x, dy, y = (max(map(largest, filter(is_float, part)), default=0.0)
                for part in (arrays[:count], arrays[count:], exact[:len(arrays) - count]))
    spreads = [(largest(a), float(np.std(a))) for a in arrays[:count] if is_float(a) and a.size]
    offset = max((size / spread for size, spread in spreads if spread), default=1.0)
    return max(x, y * offset) if of_output else max(dy, dy * y * offset / x if x else 0.0)


def terms(results, arrays, floats, exact, rng) -> list[float]:
    """How many numbers of an input one number of each result depends on, at least 1: sampled, one number at a time."""
    lengths = [1.0] * len(exact)
    for i in floats:
        share = np.zeros(len(exact))
        for _ in range(PROBES):
            changed = arrays[i].copy()
            place = tuple(rng.integers(n) for n in changed.shape)
            changed[place] *= 0.75                                      # toward 0, to stay in the domain
            moved = results([*arrays[:i], changed, *arrays[i + 1:]])
            share += [np.mean(a != b) if a.size else 0 for a, b in zip(exact, moved, strict=True)]
        lengths = [max(n, arrays[i].size * part / PROBES) for n, part in zip(lengths, share, strict=True)]
    return lengths


def verdict(value: np.ndarray, bound: Bound, dtype: np.dtype) -> Verdict:
    """Compare a result in low precision with its bound; the number that is furthest off stands for all."""
    explained = bound.explained + float(finfo(dtype).smallest_subnormal)
    with np.errstate(invalid="ignore"):
        error = np.where(value == bound.exact, 0.0, np.abs(value - bound.exact))
    error[np.isnan(error)] = np.inf
    if not error.size:
        return Verdict("rounding", "passed", why="empty")
    at = np.unravel_index(int((error / explained).argmax()), error.shape)
    index, most = [int(i) for i in at], float(explained[at])
    numbers = float(value[at]), float(bound.exact[at]), float(error[at]), most
    if error[at] <= most:
        return Verdict("rounding", "passed", *numbers, why=digits_left(bound, float(finfo(dtype).eps)))
    if not np.isfinite(value[at]):
        why = f"{dtype} gives {value[at]} at {index}, float64 gives {bound.exact[at]:.6g}"
        near = abs(bound.exact[at]) * CHAIN > float(finfo(dtype).max)
        return Verdict("rounding", "undecided" if near else "wrong", *numbers, why=why)
    why = f"{dtype} error {error[at]:.2g} at {index}, at most {most:.2g} explained"
    if error[at] <= max(bound.cancelled, CHAIN * most):
        return Verdict("rounding", "undecided", *numbers, why=why + ", unless numbers of the inputs' size cancel")
    return Verdict("rounding", "wrong", *numbers, why=why)


def digits_left(bound: Bound, eps: float) -> str:
    """How many digits conditioning leaves, if it takes more than ILL of them; "" if not."""
    size, most = largest(bound.exact), largest(bound.explained)
    if not size or most < 10 ** ILL * CHAIN * eps * size:
        return ""
    left = max(0, int(-np.log10(most / size)))
    return f"ill-conditioned: {left} digit{'' if left == 1 else 's'} left"
