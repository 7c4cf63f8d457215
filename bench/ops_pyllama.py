"""A worker of bench/ops.py: the ops on one backend.            python -m bench.ops_pyllama numpy|cpu"""
import pyllama.cli.main  # noqa: F401 -- before NumPy is: it settles the threads of a BLAS, as it does for the command

# isort: split
import sys

from bench.passes import serve_passes
from pyllama import backend, memory
from pyllama.op import OPS

if __name__ == "__main__":
    on = sys.argv[1]
    memory.install()
    with backend.use(on):
        serve_passes(lambda name: OPS[name] if on in OPS[name].backends() else None)
