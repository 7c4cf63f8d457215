"""Functions of other libraries as functions of NumPy arrays: torch, JAX, numba, C.

A library is recognized by the modules of the types it is called with.  None is imported here: whoever has a tensor has
imported torch already.

    adapted(func, inputs)       torch or JAX: f, with y, back = f(*arrays), and the arrays; None for another function
    plain(function)             numba: the function for arrays of every layout; others as they are
    c_function(pointer, text)   C: see c_functions.py
"""
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pyllama.testing.foreign import jax_functions, torch_functions
from pyllama.testing.foreign.adapting import Adapted
from pyllama.testing.foreign.c_functions import c_function
from pyllama.testing.trees import leaves

__all__ = ["Adapted", "adapted", "c_function", "library", "plain"]

LIBRARIES = {"torch": torch_functions, "jax": jax_functions, "jaxlib": jax_functions}


def library(func: Callable, inputs: Any):
    """The module of this package for a function of tensors or of JAX arrays; None for another function."""
    named = (LIBRARIES.get(name) for x in [func, *(x for _, x in leaves(inputs))] for name in packages(type(x)))
    is_class = isinstance(func, type) and any(name == "torch" for name in packages(func))
    return torch_functions if is_class else next((module for module in named if module), None)


def packages(cls: type) -> Iterator[str]:
    """The top-level packages of a class and its bases, such as torch for an nn.Parameter or a user's Module."""
    return (base.__module__.partition(".")[0] for base in cls.__mro__)


def adapted(func: Callable, inputs: Any) -> Adapted | None:
    """A function of tensors or of JAX arrays, brought to y, back = f(*arrays); None if func belongs to neither.

    func      a function of tensors, a class derived from torch.autograd.Function, or a function of JAX arrays
    inputs    its arguments: tensors or arrays, trees of these, and constants

    Floating tensors are differentiated; if one of them requires a gradient, only those that do, as in torch.  Python
    numbers and other objects are constants.
    """
    module = library(func, inputs)
    return module.adapted(func, list(inputs)) if module else None


def plain(function: Callable | None) -> Any:
    """A compiled function that takes arrays of every layout; another function (or None) as it is.

    numba compiles once more for each layout, or refuses it, so its functions get contiguous arrays: those that are not
    contiguous or not writable are copied.

    Raises TypeError for a function of ctypes, which does not say what its arguments are.
    """
    if function is None:
        return None
    if "_ctypes" in packages(type(function)):
        raise TypeError(f"{getattr(function, '__name__', 'the C function')} does not say which arguments are outputs; "
                        f"declare it: c_function(function, 'const double x[N], double y[N], long N')")
    return contiguous(function) if "numba" in packages(type(function)) else function


def contiguous(function: Callable) -> Callable:
    """The function, called with contiguous arrays that it may write to; `out` is passed on, because it fills that."""
    refused = set()                             # a failed compilation takes as long as one that succeeds

    @functools.wraps(function)
    def call(*inputs, **out):
        arrays = [np.require(x, requirements=["C", "W"]) if isinstance(x, np.ndarray) else x for x in inputs]
        types = tuple(getattr(x, "dtype", type(x)) for x in arrays)
        if types in refused:
            raise TypeError(f"numba cannot compile {function.__name__} for these types")
        try:
            return function(*arrays, **out)
        except Exception:
            if any(np.iscomplexobj(x) for x in arrays):
                refused.add(types)
            raise

    return call
