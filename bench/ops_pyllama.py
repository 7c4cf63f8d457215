"""A worker of bench/ops.py: the ops on one backend.            python -m bench.ops_pyllama numpy|cpu"""
import contextlib
import sys

import pyllama.ops  # noqa: F401 -- registers
from bench.passes import serve_passes
from pyllama import backend, machine, memory
from pyllama.op import OPS

if __name__ == "__main__":
    on = sys.argv[1]
    memory.install()
    # NumPy has one BLAS thread beside the kernels, as in training; alone, it has those that bench/ops.py gives it.
    blas_threads = machine.one_blas_thread() if on == "cpu" else contextlib.nullcontext()
    with backend.use(on), blas_threads:
        serve_passes(lambda name: OPS[name] if on in OPS[name].backends() else None)
