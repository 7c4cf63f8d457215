"""Choose the kernels by the arrays: the compiled CPU module, CUDA's for CuPy's arrays, or none: the reference."""
import contextlib
import contextvars
import functools
import importlib
import os
from types import ModuleType, SimpleNamespace

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

    Kernels take arrays of one precision, float32 or float64, or arrays of bfloat16 with some of float32 among them.
    Other mixtures, float16, complex precision, arrays of several types and of other types get the reference.
    """
    if _forced.get() == "numpy":
        return None
    floats = [x for x in inputs if x is not None and x.dtype.kind not in "iub"]
    kinds, precisions = {type(x) for x in floats}, {x.dtype.char for x in floats}
    if len(kinds) != 1:
        return None
    kind, = kinds
    if precisions in ({"f"}, {"d"}):
        return module(kind)
    return low(module(kind)) if precisions in ({"E"}, {"E", "f"}) else None


@functools.cache
def low(kernels):
    """The kernels of a module that take bfloat16: those of the ops in its LOW, and its sum."""
    names = [name + suffix for name in getattr(kernels, "LOW", ()) for suffix in ("", "_backward", "_backward_into")]
    return SimpleNamespace(**{name: getattr(kernels, name) for name in (*names, "total") if hasattr(kernels, name)})


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


@contextlib.contextmanager
def kernel_threads(n: int):
    """Let each C kernel use n threads within this context, as where several calls in parallel use the cores already."""
    before = cpu.threads() if cpu else None
    if before:
        cpu.set_threads(n)
    try:
        yield
    finally:
        if before:
            cpu.set_threads(before)
