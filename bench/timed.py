"""Where a step's time goes: the compiled kernels and the ops' references, timed from outside.

A kernel occupies as many cores as it has threads; so what is counted is the time of a core.  What an op's reference
spends in another op or kernel counts there alone.
"""
import contextlib
import threading
import time
from collections import defaultdict

from pyllama import backend
from pyllama.op import OPS


@contextlib.contextmanager
def timed():
    """Within this context: {function: [seconds of a core, calls]}.  Names of references end in " (NumPy)"."""
    spent = defaultdict(lambda: [0.0, 0])
    lock, thread = threading.Lock(), threading.local()

    def timing(f, name, threads):
        def run(*args, **options):
            outside, thread.within = getattr(thread, "within", 0.0), 0.0
            begin = time.perf_counter()
            try:
                return f(*args, **options)
            finally:
                seconds = time.perf_counter() - begin
                with lock:
                    spent[name][0] += (seconds - thread.within) * threads()
                    spent[name][1] += 1
                thread.within = outside + seconds
        return run

    functions = [(op, of, f"{op.name}{'_backward' * (of == 'backward')} (NumPy)", lambda: 1)
                 for op in OPS.values() for of in ("forward", "backward")]
    if backend.cpu:
        functions += [(backend.cpu, name, name, backend.cpu.threads) for name, f in vars(backend.cpu).items()
                      if getattr(f, "__module__", "") == backend.cpu.__name__ and "threads" not in name]
    before = [(owner, of, getattr(owner, of)) for owner, of, *_ in functions]
    try:
        for owner, of, name, threads in functions:
            setattr(owner, of, timing(getattr(owner, of), name, threads))
        yield spent
    finally:
        for owner, of, f in before:
            setattr(owner, of, f)
