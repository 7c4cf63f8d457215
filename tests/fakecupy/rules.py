"""What CuPy refuses.  Where the real one can answer without a GPU it is asked: for names, signatures and loops."""
import functools
import inspect
import re

import numpy as np
import pytest

SCALARS = bool | int | float | complex | np.bool_ | np.number
WEAK = {bool: "b", int: "i", float: "f", complex: "c"}      # Python's numbers take the precision of what they meet
KINDS = "biufc"                                             # of numbers: each can hold those before it
DTYPES = "?bhilqBHILQefdFDE"                                # E: bfloat16
AT = {"add": "iIlqLQefd", "sub": "iI", "max": "iILQfd", "min": "iILQfd",            # ufunc.at is made of atomics
      "and": "iIlqLQ", "or": "iIlqLQ", "xor": "iIlqLQ"}


class NoLoop(TypeError):
    """CuPy's ufunc does not exist for these dtypes."""


@functools.cache
def real(name="cupy"):
    """A module of the CuPy that is installed.  A test that comes here without one is skipped."""
    return pytest.importorskip(name, exc_type=ImportError,
                               reason="needs CuPy, for its rules, but not a GPU: pip install cupy-cuda13x")


@functools.cache
def check_signature(f, count, names):
    """TypeError unless CuPy's function takes so many positional arguments and keywords of these names."""
    signature(f).bind(*range(count), **dict.fromkeys(names))


def signature(f):
    """Of a function of CuPy's: what is compiled shows its own in the docstring's first line alone, with types of C."""
    try:
        return inspect.signature(f)
    except ValueError:
        line = f.__doc__.partition("\n")[0]
        parameters = re.sub(r"\w+ (?=\w)", "", line[line.index("(") + 1:line.rindex(")")])
        return inspect.signature(eval(f"lambda {parameters}: None"))


def check_dtype(dtype):
    if dtype.char not in DTYPES:
        raise ValueError(f"Unsupported dtype {dtype}")


def check_ufunc(ufunc, inputs, options):
    """TypeError unless CuPy's ufunc takes such inputs and options."""
    if wrong := options.keys() - {"out", "dtype", "casting"}:
        raise TypeError(f"Wrong arguments {wrong}: {ufunc.name} takes out, dtype and casting")
    for x in inputs:
        if not isinstance(x, SCALARS) and not is_device(x):
            raise TypeError(f"Unsupported type {type(x)}: {ufunc.name} takes device arrays and scalars")
    if options.get("dtype") is None:
        check_loop(ufunc, tuple(WEAK.get(type(x)) or x.dtype for x in inputs[:ufunc.nin]))


@functools.cache
def check_loop(ufunc, given):
    """NoLoop unless a loop of the ufunc takes these: dtypes, or the kinds of Python's numbers."""
    loops = [loop.partition("->")[0] for loop in ufunc.types]
    if not any(all(map(takes, loop, given)) for loop in loops):
        raise NoLoop(f"Wrong type {given} of arguments: {ufunc.name} has loops for {', '.join(loops)}")


def takes(char, given):
    """Does an input of this dtype character take a dtype, or a kind of Python's numbers, without loss?"""
    if char in "EV":                                        # bfloat16, records: only themselves
        return getattr(given, "char", "") == char
    if isinstance(given, str):
        return KINDS.index(given) <= KINDS.index(np.dtype(char).kind)
    return np.can_cast(given, char)


def check_at(ufunc, dtype):
    """NotImplementedError or TypeError unless CuPy has the ufunc's at(), for this dtype."""
    op = ufunc._scatter_op
    if op is None:
        raise NotImplementedError(f"`{ufunc.name}.at` is not supported yet")
    if dtype.char not in AT[op]:
        raise TypeError(f"{ufunc.name}.at does not support {dtype}, only the types {AT[op]}")


# What CuPy does not refuse though the result is undefined.

def check_to_integer(x, dtype):
    """ValueError if a number fits no integer of this dtype, as NaN fits none and -1 none without a sign."""
    if x.dtype.kind in "fc" and dtype.kind in "iu":
        info, whole = np.iinfo(dtype), np.trunc(x.real)
        if not np.all((whole >= float(info.min)) & (whole < float(info.max + 1))):
            raise ValueError(f"a number of {x.dtype} does not fit {dtype}: what a device makes of it is undefined")


def check_duplicates(shape, key):
    """ValueError if an index names a place twice."""
    times = np.zeros(shape, np.int32)
    np.add.at(times, key, 1)
    if np.any(times > 1):
        raise ValueError("two values for one place: which one a device leaves there is undefined; add.at adds them")


def check_overlap(to, x):
    """ValueError if an array is copied to another part of itself: a device copies in no particular order."""
    if to.ctypes.data != x.ctypes.data and to.shape == x.shape and np.shares_memory(to, x):
        raise ValueError("an array is copied onto a part of itself: what a device leaves there is undefined")


def is_device(x):
    return type(x).__module__ == "cupy"
