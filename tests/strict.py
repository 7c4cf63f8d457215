"""An array that treats NumPy as CuPy's does: NumPy's functions dispatch on it, and it never mixes with a host array.

What runs on Strict arrays is written in the dialect that runs on a GPU; no GPU is needed to find out.
"""
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

NOT_IN_CUPY = {"where", "initial"}                                       # keywords that its reductions lack


def unwrap(x):
    if isinstance(x, Strict):
        return x.host
    if isinstance(x, np.ndarray) and x.ndim:
        raise TypeError("a host array meets a device array: create it with like=")
    if isinstance(x, list | tuple):
        return type(x)(map(unwrap, x))
    return x


def wrap(x):
    if isinstance(x, np.ndarray | np.generic):
        return Strict(np.asarray(x))
    return type(x)(map(wrap, x)) if isinstance(x, list | tuple) else x


def call(f, args, kwargs):
    if NOT_IN_CUPY & kwargs.keys():
        raise TypeError(f"CuPy's {f.__name__} takes no {NOT_IN_CUPY & kwargs.keys()}")
    return wrap(f(*map(unwrap, args), **{name: unwrap(value) for name, value in kwargs.items()}))


class Strict(NDArrayOperatorsMixin):
    def __init__(self, host):
        self.host = host

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        return call(getattr(ufunc, method), args, kwargs)

    def __array_function__(self, function, types, args, kwargs):
        if function is np.asarray:                                       # with like=: the one door from host to device
            return Strict(np.asarray(*args, **kwargs))
        return call(function, args, kwargs)

    def __getattr__(self, name):
        value = getattr(self.host, name)
        if callable(value) and name != "dtype":
            return lambda *args, **kwargs: call(value, args, kwargs)
        return wrap(value)

    def __getitem__(self, key):
        return wrap(self.host[unwrap(key)])

    def __setitem__(self, key, value):
        self.host[unwrap(key)] = unwrap(value)

    def __len__(self):
        return len(self.host)
