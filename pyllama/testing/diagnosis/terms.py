"""Hypotheses about the difference measured - claimed: a term that is missing or wrong, a factor for each row."""
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from pyllama.testing.diagnosis.constants import short, simple
from pyllama.testing.diagnosis.evidence import CLEAR, Evidence, broadcasts, entries, largest
from pyllama.testing.diagnosis.whole import called

SURPLUS = 4                                         # numbers that fit, beyond those that were chosen to fit
TINY = 1e-3
NUMBERS = {"1": "", "-1": "-", "2": "2 × ", "-2": "-2 × "}
FACTORS = 4                                         # of a term
MANY = 20_000                                       # products: a third of a second
FORM = "so is the gradient itself; an eps or a power of a root differs"
LARGE = 4096                                        # entries, for which all products would take long


def sentences(e: Evidence) -> Iterator[str]:
    """What the difference is, the most specific first."""
    missing = e.measured - e.claimed
    if not largest(missing[e.known]) > CLEAR * noise(e):
        return
    if not e.known.all():
        yield from [*an_array(e, missing)] or [*another(e)] or [*an_array(e, missing, short)]
        return
    yield from ([*an_array(e, missing)] or [*along_axes(e, missing)] or [*factors(e)] or [*of_parts(e, missing)] or
                [*another(e)] or [*an_array(e, missing, short)])


def noise(e: Evidence) -> float:
    return e.noise + 1e-10 * max(e.size, largest(e.claimed[e.known]))


def an_array(e: Evidence, missing, named: Callable[[float], str] = simple) -> Iterator[str]:
    """The difference is a product of simple arrays, with a number that `named` accepts."""
    if term := product(e, missing, named):
        yield f"Missing term{doubt(term)}: measured - claimed = {term} {entries(len(e.picked))}."


def doubt(term: str) -> str:
    """A term that is there with the wrong sign is missing twice."""
    return " or one with the wrong sign" if term.removeprefix("-").startswith("2 × ") else ""


def another(e: Evidence) -> Iterator[str]:
    """All of claimed is a product of simple arrays, as where a pass uses x instead of y."""
    if formula := product(e, e.claimed) or summed(e):
        yield f"Another formula: claimed = {formula} {entries(len(e.picked))}."


def summed(e: Evidence) -> str:
    """The sum over the leading axes of dy times inputs or y that claimed is; "" if it is none."""
    axes = tuple(range(e.dy.ndim - e.x.ndim))
    if not axes or e.dy.shape[len(axes):] != e.x.shape or not e.known.all():
        return ""
    arrays = {name: a for name, a in {**e.inputs, e.output: e.y}.items()
              if a.dtype.kind == "f" and a.shape == e.dy.shape}
    for count in (1, 2):
        for names in itertools.combinations_with_replacement(arrays, count):
            total = np.prod([e.dy, *(arrays[name] for name in names)], axis=0).sum(axes)
            if e.explains(total):
                return f"the sum of {' × '.join(['dy', *names])} over {called(axes)}"
    return ""


def product(e: Evidence, wanted, named: Callable[[float], str] = simple) -> str:
    """A number times a product of inputs, dy, y and simple functions of these that is `wanted`; "" if none is.

    named       the number as text; "" if it may not be the number
    """
    wanted = e.pick(wanted)
    if np.count_nonzero(np.abs(wanted) > noise(e)) < (2 if named is simple else SURPLUS):
        return ""
    for count in range(1, FACTORS + 1):
        for names in itertools.combinations(e.values, count) if math.comb(len(e.values), count) <= MANY else ():
            if count > 1 and "dy" not in names:
                continue                            # a gradient is linear in dy
            whole = np.prod([e.values[name] for name in names], axis=0)
            place = np.abs(whole).argmax()
            number = float(wanted[place] / whole[place])
            fraction = named(number)
            if fraction and largest(wanted - number * whole) <= noise(e) * max(1, abs(number)):
                return {"1": "", "-1": "-"}.get(fraction, f"{fraction} × ") + " × ".join(names)
    return ""


def along_axes(e: Evidence, missing) -> Iterator[str]:
    """The difference is an array times something that is constant along some axes."""
    arrays = {"": np.ones(e.x.shape)} | {name: a for name, a in e.candidates.items() if a.ndim and np.ptp(a)}
    long = [axis for axis, size in enumerate(missing.shape) if size > 1]
    for count in range(len(long), 0, -1):
        for axes in itertools.combinations(long, count):
            groups = missing.size // int(np.prod([missing.shape[axis] for axis in axes]))
            if missing.size - groups < SURPLUS:
                continue
            for name, a in arrays.items():
                full = np.broadcast_to(a, missing.shape)
                part = least_squares(missing, full, axes)
                if largest(missing - part * full) <= noise(e):
                    yield described(e, name, part, axes)
                    return


def least_squares(missing, a, axes):
    """c, constant along the axes, for which c a is closest to the difference."""
    squares = (a * a).sum(axes, keepdims=True)
    return (missing * a).sum(axes, keepdims=True) / np.where(squares == 0, 1, squares)


def described(e: Evidence, name: str, part, axes) -> str:
    constant = f"constant along {called(axes)}"
    times = f"{name} times something {constant}" if name else constant
    exact = coefficient(e, part, axes)
    return (f"Missing term{doubt(exact)}: measured - claimed is {times} of {e.input}" +
            (f", namely {f'{name} × ' * bool(name)}({exact})" if exact else "") + ".")


def coefficient(e: Evidence, part, axes) -> str:
    """What the part that is constant along the axes is: a number times a sum over dy; "" if unknown."""
    if e.dy.shape != e.x.shape:
        return ""
    arrays = {name: a for name, a in e.candidates.items() if name != "dy"}
    terms = {"dy": e.dy} | {f"dy × {name}": e.dy * a for name, a in arrays.items()}
    terms |= {f"dy × {a} × {b}": e.dy * arrays[a] * arrays[b]
              for a, b in itertools.combinations(arrays, 2) if "(" not in a + b}
    for (name, term), reduce in itertools.product(terms.items(), ("sum", "mean")):
        total = getattr(np, reduce)(term, axis=axes, keepdims=True)
        place = np.abs(total).argmax()
        number = float(part.flat[place] / total.flat[place])
        if simple(number) in NUMBERS and largest(part - number * total) <= 1e-6 * largest(part):
            return f"{NUMBERS[simple(number)]}{reduce} of {name} over {called(axes)}"
    return ""


def of_parts(e: Evidence, missing) -> Iterator[str]:
    """In each row, the difference is a combination of a few arrays, as where the terms of a norm are."""
    if not missing.ndim or missing.size > LARGE:
        return
    for names, cause in combinations(e):
        count, columns = len(names), missing.shape[-1]
        if missing.size // max(columns, 1) * (columns - count) >= SURPLUS:
            arrays = [math.prod(np.broadcast_to(one(e, name), missing.shape) for name in name.split(" × "))
                      for name in names]
            basis = np.stack(arrays, -1)                # [..., columns, count]
            weights = np.linalg.pinv(basis) @ missing[..., None]
            shares = basis * weights.swapaxes(-1, -2)
            counted = np.abs(shares) > CLEAR ** 2 * noise(e)
            surplus = counted.sum(-2) - counted.any(-2)         # [..., count], beyond the number for each row
            needed = (surplus.sum(tuple(range(surplus.ndim - 1))) >= SURPLUS).all()
            if needed and largest(missing - shares.sum(-1)) <= CLEAR * noise(e):
                parts = [f"{letter} × {name}" if name != "1" else letter
                         for letter, name in zip("abcd", names, strict=False)]
                kind = "Right form, wrong numbers" if cause == FORM else "Missing term"
                yield (f"{kind}: along the last axis, measured - claimed = {' + '.join(parts)} with numbers "
                       f"{', '.join('abcd'[:count - 1])} and {'abcd'[count - 1]} for each row: {cause}.")
                return


def one(e: Evidence, name: str) -> np.ndarray:
    """An array by its name, or 1, or one that is reduced by 1: "(w - 1)"."""
    if name == "1":
        return np.ones(e.x.shape)
    return e.candidates[name[1:-5]] - 1 if name.endswith(" - 1)") else e.candidates[name]


def combinations(e: Evidence) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a difference may be a combination of, and what that hints at; the fewest arrays first."""
    rows = [name for name in (e.input, e.output) if name in e.candidates and e.candidates[name].shape == e.x.shape]
    weights = [name for name, w in e.candidates.items() if w.shape == e.x.shape[-1:] != e.x.shape and np.ptp(w)]
    misplaced = "is on the wrong side of a sum over the row, or on both"
    for x in rows:
        yield ("1", x), "the terms through a mean and a variance are so"
        for w in weights:
            yield (x, f"{x} × {w}"), f"{w} {misplaced}"
    for x in rows if e.dy.shape == e.x.shape else ():
        for last in [f"dy × {w}" for w in weights] or ["dy"]:
            yield (x, last), FORM
            yield ("1", x, last), FORM
    for w in weights:
        for x in rows:
            if e.dy.shape == e.x.shape:
                yield (x, f"dy × ({w} - 1)"), f"{w} is left out"
            yield ("1", w, x, f"{x} × {w}"), f"{w} {misplaced}"


def factors(e: Evidence) -> Iterator[str]:
    """claimed / measured is a number for each row, or for each column."""
    usable = np.abs(e.measured) > TINY * e.size
    if not e.size or usable.mean() < 0.5:
        return
    quotient = np.where(usable, e.claimed / np.where(usable, e.measured, 1), np.nan)
    for count in range(e.x.ndim - 1, 0, -1):
        for axes in itertools.combinations(range(e.x.ndim), count):
            if usable.any(axes).all() and (usable.sum(axes) > 2).all() and usable.sum() - usable.sum(axes).size >= 3:
                one = np.nanmedian(quotient, axis=axes, keepdims=True)
                if e.explains(one * e.measured, largest(one)) and np.ptp(one) > 1e-6 * largest(one):
                    yield (f"A factor for each place, constant along {called(axes)}: claimed / measured is from "
                           f"{short(one.min())} to {short(one.max())}{statistic(e, one, axes)}.")
                    return


def statistic(e: Evidence, one, axes) -> str:
    """What the factor is: a power of the root mean square or of the standard deviation of x's rows, or of an array."""
    for name, squares in {"sqrt(mean(x²) + eps)": (e.x ** 2).mean(axes, keepdims=True),
                          "sqrt(var(x) + eps)": e.x.var(axes, keepdims=True)}.items():
        for power, what in ((2, ""), (-2, "1 / ")):
            eps = one ** power - squares
            if one.size > 2 and np.ptp(eps) <= 1e-6 * largest(squares) and eps.min() > -1e-6 * largest(squares):
                return f", and it is {what}{name.replace('x', e.input)} over {called(axes)}"
    for name, a in e.candidates.items():
        if broadcasts(a, one) and np.ptp(a):
            for what, value in ((name, a), (f"1 / {name}", 1 / np.where(a == 0, np.nan, a))):
                if largest(one - value) <= 1e-6 * largest(one):
                    return f", and it is {what}"
    return ""
