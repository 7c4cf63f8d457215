"""Which kernels may run on these arrays: the compiled CPU module, CUDA's for CuPy's arrays, or none: the reference."""
import contextlib
import contextvars
import importlib
import os
from types import ModuleType

import numpy as np

# OpenBLAS's and OpenMP's pools would spin against each other, up to 60 times slower; OpenMP reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    from pyllama import cpu
    why_no_cpu = ""
except ImportError as error:                                # not built, or PYLLAMA_ISA asks for what is not there
    cpu, why_no_cpu = None, str(error)                     # type: ignore[assignment]

cuda: ModuleType | None = None                              # pyllama.cuda, once an array on a GPU has been met

_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


def available():
    """The names that use() takes on this machine."""
    return ["numpy", *["cpu"] * bool(cpu), *["cuda"] * bool(cuda)]


def of(inputs):
    """The module whose kernels run on these inputs, or None for the reference.

    Kernels take one real precision, float32 or float64; complex arrays and other array types get the reference.
    """
    if _forced.get() == "numpy":
        return None
    kinds = {(type(x), x.dtype.char) for x in inputs if x.dtype.kind not in "iub"}
    if len(kinds) != 1:
        return None
    (kind, precision), = kinds
    return module(kind) if precision in "fd" else None


def module(kind: type):
    """Whose kernels run on arrays of this type.  CuPy is named, not imported: who has such an array has it."""
    global cuda
    if kind is np.ndarray:
        return cpu
    if kind.__module__ != "cupy":
        return None
    cuda = cuda or importlib.import_module("pyllama.cuda")
    return cuda


@contextlib.contextmanager
def use(name):
    """Within this context (and thread) run the ops on "numpy", the reference, or with the kernels there are: "cpu" for
    arrays on the host, "cuda" for those on a GPU."""
    if name not in available():
        raise ValueError(f"backend {name!r} is not among {available()}" + (f": {why_no_cpu}" if name == "cpu" else ""))
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
