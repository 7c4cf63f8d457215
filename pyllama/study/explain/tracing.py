"""Arrays that know which results they were computed from, across views, sums and other steps between two ops."""
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

NEW = {np.zeros_like, np.ones_like, np.empty_like, np.full_like}           # read a shape, not a number


class Source(NamedTuple):
    """Where numbers come from.

    kind    a parameter, an output of a call, or the gradient that a call's backward pass returned
    name    of the parameter, else ""
    call    the number of the call, -1 for a parameter
    place   of the output, or of the input that has the gradient
    """
    kind: Literal["parameter", "output", "gradient"]
    name: str = ""
    call: int = -1
    place: int = 0


class Traced(np.ndarray):
    """An array with `sources`: the parameters and results that it was computed from, without repetition.

    Views and copies keep them; functions of several arrays join them.  The numbers are those of plain arrays.

    >>> import numpy as np
    >>> from pyllama.study.explain.tracing import Source, traced
    >>> x, y = (traced(np.ones((2, 3)), Source("parameter", name)) for name in "xy")
    >>> [source.name for source in (x[0] + y.T[:, 1]).sources]
    ['x', 'y']
    """
    sources: tuple[Source, ...]

    def __array_finalize__(self, base):
        self.sources = getattr(base, "sources", ())

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        if out:
            options["out"] = tuple(map(plain, out))
        result = getattr(ufunc, method)(*map(plain, inputs), **options)
        if method == "at":
            out = inputs[:1]
        for array in out:
            if isinstance(array, Traced):
                array.sources = joined([array, *inputs])
        return out[0] if out and method != "at" else carrying(result, joined(inputs))

    def __array_function__(self, function, types, args, options):
        sources = () if function in NEW else joined([*args, *options.values()])
        return carrying(function(*map(plain, args), **{name: plain(value) for name, value in options.items()}), sources)

    def __setitem__(self, key, value):
        self.sources = joined([self, value])
        super().__setitem__(key, plain(value))


def traced(array: np.ndarray, *sources: Source) -> Traced:
    """A view of the array with these sources."""
    view = np.asarray(array).view(Traced)
    view.sources = sources
    return view


def plain(value: Any) -> Any:
    """The value with plain arrays, within lists and tuples, too."""
    if isinstance(value, list | tuple) and any(isinstance(one, Traced) for one in value):
        return type(value)(map(plain, value))
    return value.view(np.ndarray) if isinstance(value, Traced) else value


def sources_of(value: Any) -> tuple[Source, ...]:
    """The sources of an array, or of the arrays in a list."""
    return joined(value) if isinstance(value, list | tuple) else getattr(value, "sources", ())


def joined(values: Iterable) -> tuple[Source, ...]:
    """The sources of all values, each once."""
    return tuple(dict.fromkeys(source for value in values for source in sources_of(value)))


def carrying(result: Any, sources: tuple[Source, ...]) -> Any:
    """The result of a function with these sources, if it is an array or several."""
    if isinstance(result, list | tuple):
        return type(result)(carrying(one, sources) for one in result)
    return traced(result, *sources) if isinstance(result, np.ndarray) else result
