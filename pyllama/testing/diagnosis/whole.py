"""Hypotheses that predict every entry of what back returned: a factor, another order, another input's gradient."""
import itertools
from collections.abc import Iterator

import numpy as np

from pyllama.testing.diagnosis.constants import names, short, simple, sizes_of
from pyllama.testing.diagnosis.evidence import CLEAR, Evidence, entries, largest

TINY = 1e-3                                         # of the largest: a factor below this is not divided by
POWERS = {-1.0: "measured / {}", 1.0: "measured × {}", -2.0: "measured / {}²", 2.0: "measured × {}²",
          -0.5: "measured / √{}", 0.5: "measured × √{}"}
AXES = 4                                            # arrays with more have too many permutations


def sentences(e: Evidence) -> Iterator[str]:
    """Everything that explains claimed as a whole, the most specific first."""
    yield from vanishing(e)
    if swapped := [*of_another_input(e)]:
        yield from swapped
        return
    yield from in_another_order(e)
    yield from with_a_factor(e)
    yield from by_an_array(e)
    yield from dy_itself(e)


def vanishing(e: Evidence) -> Iterator[str]:
    count = int((e.known & (e.measured != 0)).sum())
    if not e.claimed[e.known].any() and e.size > CLEAR * e.noise:
        yield (f"All zeros: claimed is 0 {entries(int(e.known.sum()))}, but {e.output} depends on {e.input}: "
               f"measured is up to {e.size:.6g}, and not 0 at {count}.")
    claimed = largest(e.claimed[e.known])
    if e.size <= e.noise < claimed / CLEAR:
        yield (f"Should be zero: measured is 0 {entries(int(e.known.sum()))}, but the claimed gradient of {e.output} "
               f"with respect to {e.input} is up to {claimed:.6g}.")


def of_another_input(e: Evidence) -> Iterator[str]:
    for name, other in e.others.items():
        if other.shape == e.x.shape and largest(other[np.isfinite(other)]) > e.noise and e.explains(other):
            yield f"Gradient of the wrong input: claimed for {e.input} is the measured gradient of {name}."


def with_a_factor(e: Evidence) -> Iterator[str]:
    """One number, if it was seen at two entries or is a simple one."""
    factor, count = ratio(e, e.measured)
    if not factor or not e.explains(factor * e.measured, abs(factor)):
        return
    near = max(1e-9, e.noise / e.size)
    if simple(factor, near) == "-1":
        yield f"Wrong sign: claimed = -measured {entries(int(e.known.sum()))}."
        return
    what = names(factor, sizes_of(**{e.input: e.x, e.output: e.y}), near)
    if count > 1 or what or simple(factor, near):
        sign = " and wrong sign" if factor < 0 else ""
        here = "" if what or simple(factor, near) else " at these inputs"
        yield "; ".join([f"Constant factor {short(abs(factor))}{sign}{here}: claimed = {short(factor)} × measured "
                         f"{entries(int(e.known.sum()))}", *what]) + end(what)


def end(clauses) -> str:
    return "" if clauses and clauses[-1].endswith("?") else "."


def ratio(e: Evidence, whole: np.ndarray) -> tuple[float, int]:
    """claimed / whole where that is largest, and at how many entries it has enough digits."""
    usable = e.known & np.isfinite(whole) & (np.abs(whole) > TINY * largest(whole[e.known & np.isfinite(whole)]))
    if not usable.any():
        return 0.0, 0
    place = np.argmax(np.where(usable, np.abs(whole), -1))
    return float(e.claimed.flat[place] / whole.flat[place]), int(usable.sum())


def by_an_array(e: Evidence) -> Iterator[str]:
    """A factor that is an input, y, dy or made of these."""
    few = e.few
    for name, a in e.values.items():
        for power, formula in POWERS.items():
            value, prediction, gain = scaled(few, a, power)
            if value and few.explains(prediction, gain):
                times = f"{simple(value)} × " if simple(value) != "1" else ""
                yield (f"Wrong factor{surplus(name, value, power)}: claimed = {times}{formula.format(name)} "
                       f"{entries(int(np.isfinite(prediction).sum()))}.")
                return


def surplus(name: str, value: float, power: float) -> str:
    """What is missing or there too often, if it has the power 1."""
    if abs(power) != 1:
        return ""
    number = simple(value ** power)
    factor = name if number == "1" else f"{number} × {name}"
    return f": {factor} is missing" if power < 0 else f": {factor} is there once too often"


def scaled(e: Evidence, a: np.ndarray, power: float) -> tuple[float, np.ndarray, float]:
    """(number, number × measured × a^power, the largest factor), with a simple number; 0 if none fits."""
    usable = (np.abs(a) > TINY * largest(a)) & ((a > 0) | (power % 1 == 0))
    factor = np.where(usable, a, np.nan) ** power
    whole = e.measured * factor
    value, count = ratio(e, whole)
    fits = count > 1 and e.size and simple(value, max(1e-9, e.noise / e.size))
    return value if fits else 0.0, value * whole, abs(value) * largest(factor[usable])


def dy_itself(e: Evidence) -> Iterator[str]:
    """claimed is dy, unchanged or summed."""
    for name, a in {**{name: a for name, a in e.candidates.items() if name == "dy"}, **sums(e)}.items():
        if a.any() and e.explains(np.broadcast_to(a, e.x.shape)):
            yield f"The derivative itself is missing: claimed is {name} {entries(int(e.known.sum()))}."
            return


def sums(e: Evidence) -> dict[str, np.ndarray]:
    """dy summed over the axes that x does not have."""
    axes = tuple(range(e.dy.ndim - e.x.ndim))
    fits = axes and e.dy.shape[len(axes):] == e.x.shape
    return {f"dy summed over {called(axes)}": e.dy.sum(axes)} if fits else {}


def called(axes) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def in_another_order(e: Evidence) -> Iterator[str]:
    """Transposed, permuted, reversed or shifted."""
    for what, prediction in rearranged(e.measured):
        if np.count_nonzero(prediction[e.known & np.isfinite(prediction)]) > 1 and e.explains(prediction):
            yield f"{what} {entries(int((e.known & np.isfinite(prediction)).sum()))}."
            return
    yield from over_another_axis(e)


def rearranged(m: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """m in other orders, of the same shape, with the beginning of the sentence that says so."""
    axes = tuple(range(m.ndim))
    for order in itertools.permutations(axes) if 1 < m.ndim <= AXES else ():
        swapped = [axis for axis in axes if order[axis] != axis]
        if swapped and m.transpose(order).shape == m.shape:
            both = f"axes {swapped[0]} and {swapped[1]} of measured are swapped"
            yield (f"Transposed: {both}" if len(swapped) == 2 else
                   f"Axes permuted: claimed = measured.transpose{order}"), m.transpose(order)
    for axis in axes:
        if m.shape[axis] > 1:
            yield f"Reversed: claimed is measured from the end to the start of axis {axis}", np.flip(m, axis)
            yield from shifted(m, axis)
    for order in itertools.permutations(axes) if 1 < m.ndim <= AXES else ():
        if order != axes:
            what = "Transposed and reshaped" if m.ndim == 2 else "Reshaped in another order"
            yield (f"{what}: claimed = measured.transpose{order}.reshape{m.shape}",
                   m.transpose(order).reshape(m.shape))


def shifted(m: np.ndarray, axis: int) -> Iterator[tuple[str, np.ndarray]]:
    for step in (1, -1):
        rolled = np.roll(m, step, axis)
        yield f"Shifted: claimed is measured, moved by {step:+d} along axis {axis} around the end,", rolled
        if m.shape[axis] > 2:
            moved = np.moveaxis(rolled.copy(), axis, 0)
            moved[0 if step > 0 else -1] = np.nan
            yield f"Shifted: claimed is measured, moved by {step:+d} along axis {axis},", np.moveaxis(moved, 0, axis)


def over_another_axis(e: Evidence) -> Iterator[str]:
    """A sum of dy, times an array, over other axes than those that x does not have."""
    count = e.dy.ndim - e.x.ndim
    arrays = {"dy": e.dy} | {f"dy × {name}": e.dy * a for name, a in {**e.inputs, e.output: e.y}.items()
                             if a.dtype.kind == "f" and a.shape == e.dy.shape}
    for name, terms in arrays.items() if count > 0 and e.dy.ndim <= AXES else ():
        summed = {axes: terms.sum(axes) for axes in itertools.combinations(range(e.dy.ndim), count)}
        fitting = {axes: total for axes, total in summed.items() if total.shape == e.x.shape}
        right = [axes for axes, total in fitting.items() if agrees(e, total)]
        wrong = [axes for axes, total in fitting.items() if e.explains(total)]
        if right and wrong:
            yield (f"Summed over the wrong axis: claimed is {name} summed over {called(wrong[0])}, measured is its sum "
                   f"over {called(right[0])}.")


def agrees(e: Evidence, total: np.ndarray) -> bool:
    return largest((total - e.measured)[e.known]) <= e.noise + 1e-10 * e.size
