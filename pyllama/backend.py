"""Which kernels may run on these arrays: the compiled CPU module, or none, which leaves the reference."""
import contextlib
import contextvars
import os

import numpy as np

# OpenBLAS's and OpenMP's pools would spin against each other, up to 60 times slower; OpenMP reads this when it loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    from pyllama import cpu
    why_no_cpu = ""
except ImportError as error:                                # not built, or PYLLAMA_ISA asks for what is not there
    cpu, why_no_cpu = None, str(error)                     # type: ignore[assignment]

_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


def available():
    """The names that use() takes on this machine."""
    return ["numpy", "cpu"] if cpu else ["numpy"]


def of(inputs):
    """The module whose kernels run on these inputs, or None for the reference.

    Kernels take one real precision, float32 or float64; complex arrays and other array types get the reference.
    """
    if _forced.get() == "numpy":
        return None
    kinds = {x.dtype.char if type(x) is np.ndarray else "" for x in inputs if x.dtype.kind not in "iub"}
    return cpu if kinds in ({"f"}, {"d"}) else None


@contextlib.contextmanager
def use(name):
    """Within this context (and thread) run the ops on "numpy", the reference, or on "cpu" where a kernel exists."""
    if name not in available():
        raise ValueError(f"backend {name!r} is not among {available()}" + (f": {why_no_cpu}" if name == "cpu" else ""))
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
