"""Choose the kernels by the arrays: the compiled CPU module, CUDA's for CuPy's arrays, or none: the reference."""
import contextlib
import contextvars
import importlib
import os
from types import ModuleType

import numpy as np

# OpenBLAS's and OpenMP's threads would spin against each other, up to 60 times slower.  OpenMP reads this on load.
SET_HERE = {"OMP_WAIT_POLICY"} - os.environ.keys()
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    from pyllama import cpu
    why_no_cpu, why_no_blas = "", getattr(cpu, "why_no_blas", "")
except ImportError as error:                                # not built, or PYLLAMA_ISA is not supported
    cpu, why_no_cpu, why_no_blas = None, str(error), ""    # type: ignore[assignment]

cuda: ModuleType | None = None                              # pyllama.cuda, imported for the first array on a GPU

_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


def available():
    """The names of the backends on this machine: those that use() accepts."""
    return ["numpy", *["cpu"] * bool(cpu), *["cuda"] * bool(cuda)]


def kernels_for(inputs):
    """The module whose kernels run on these inputs, or None for the reference.

    Kernels compute in one real precision, float32 or float64.  Mixed, half and complex precision and other types of
    arrays get the reference.
    """
    if _forced.get() == "numpy":
        return None
    kinds = {(type(x), x.dtype.char) for x in inputs if x is not None and x.dtype.kind not in "iub"}
    if len(kinds) != 1:
        return None
    (kind, precision), = kinds
    return module(kind) if precision in "fd" else None


def module(kind: type):
    """The module whose kernels run on arrays of this type, or None.

    CuPy is recognized by name: whoever has such an array has imported it already.
    """
    global cuda
    if kind is np.ndarray:
        return cpu
    if kind.__module__ != "cupy":
        return None
    cuda = cuda or importlib.import_module("pyllama.cuda")
    return cuda


@contextlib.contextmanager
def use(name):
    """Run ops on this backend within this context and thread.

    name    "numpy": the reference; "cpu" or "cuda": the kernels for the device of each op's arrays

    Raises ValueError if the backend is not available.
    """
    if name not in available():
        reason = f": {why_no_cpu}" if name == "cpu" else ""
        raise ValueError(f"backend {name!r} is not available; choose among {available()}{reason}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
