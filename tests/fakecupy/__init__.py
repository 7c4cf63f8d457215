"""A stand-in for the modules cupy and cupyx, for machines without a GPU.

    with fakecupy.installed():                          # `import cupy` gives the stand-in
        x = cupy.asarray(numbers)
        with fakecupy.counting() as counts:
            y = np.exp(x)
        assert counts.syncs == 0

Arrays lie in the device memory of tests/cuda_on_cpu, and RawModule's kernels are run there: in a random order of blocks
and threads, another at each launch.  NumPy computes all else, by CuPy's rules (rules.py), which the real CuPy is asked
for where it can answer without a GPU.  Where CuPy is silent and the result undefined, the stand-in refuses: an index
out of bounds, two values for one place, a number that fits no integer, an array copied onto a part of itself.  Memory
that nothing has been written to holds NaN.

What it cannot show: speed, memory use, the order of streams (all work is done at once), cuBLAS's roundings.
"""
import contextlib
import sys

from pyllama import backend
from tests.fakecupy import names
from tests.fakecupy.counts import Counts, counting, stats

checked = False                     # run kernels in the build that finds races and accesses outside the arguments?
order = "random"                    # of threads and blocks: "forward", "reverse" or "random",
seed = 0                            # by this seed, which each launch advances


def module():
    """The stand-in for the module cupy."""
    return names.cupy()


_kernels: dict = {}                 # the modules of pyllama.cuda, which keep the CuPy that they were imported with


@contextlib.contextmanager
def installed():
    """Within this context `import cupy` and `import cupyx` give the stand-ins, and pyllama.cuda runs on them."""
    cupy, cupyx = names.cupy(), names.cupyx()
    standing_in = {"cupy": cupy, "cupy.linalg": cupy.linalg, "cupy.cuda": cupy.cuda,
                   "cupy.cuda.runtime": cupy.cuda.runtime, "cupyx": cupyx}
    real, before = taken_out(), backend.cuda
    sys.modules.update(standing_in | _kernels)
    backend.cuda = _kernels.get("pyllama.cuda")
    try:
        yield cupy
    finally:
        _kernels.update({name: there for name, there in taken_out().items() if name.startswith("pyllama.")})
        sys.modules.update(real)
        backend.cuda = before


def taken_out() -> dict:
    """The modules of CuPy and those that hold on to it, no longer to be imported."""
    names = [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx")
             or name == "pyllama.cuda" or name.startswith("pyllama.cuda.")]
    return {name: sys.modules.pop(name) for name in names}


__all__ = ["Counts", "counting", "installed", "module", "stats"]
