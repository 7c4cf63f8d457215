"""Measure where a training step's time goes: the passes of the ops, and the optimizer.

Times are in core seconds: a kernel occupies as many cores as it has threads.
"""
import contextlib
import threading
import time
from collections import defaultdict

from pyllama import backend
from pyllama.op import watching


@contextlib.contextmanager
def timed(optimizer):
    """A context that yields {function: [core seconds, calls]}, filled as functions run within it.

    Names that end in " (NumPy)" are reference functions; the others are kernels.
    """
    spent = defaultdict(lambda: [0.0, 0])
    lock = threading.Lock()

    def clocked(kernels, name, f, *args, **options):
        is_kernel = hasattr(kernels, name)
        cores = backend.cpu.threads() if is_kernel and kernels is backend.cpu else 1
        begin = time.perf_counter()
        try:
            return f(*args, **options)
        finally:
            seconds = time.perf_counter() - begin
            with lock:
                entry = spent[name if is_kernel else f"{name} (NumPy)"]
                entry[0] += seconds * cores
                entry[1] += 1

    def watch(op, call, inputs, options):
        kernels = backend.kernels_for(inputs)
        y, back = clocked(kernels, op.name, call, *inputs, **options)
        return y, lambda dy: clocked(kernels, f"{op.name}_backward", back, dy)

    def step(p, *args, **options):
        return clocked(backend.kernels_for([p]), optimizer.rule.__name__, plain_step, p, *args, **options)

    plain_step = optimizer.step
    optimizer.step = step                               # of this object only
    try:
        with watching(watch):
            yield spent
    finally:
        del optimizer.step
