"""The generic tests on a GPU, or on what stands in for one.

    PYLLAMA_TEST_GPU=1 python -m pytest -k cuda tests/test_ops.py tests/test_laws*.py tests/test_models.py

Within backend.use("cuda") an op takes its inputs from the host to the device, and brings its results back: so tests
that know nothing of devices run the kernels.  What is on the device already stays there.
"""
import contextlib
import sys
from contextvars import ContextVar

import numpy as np

from pyllama import backend, device, params
from pyllama.errors import UserError
from pyllama.op import Op
from tests import fakecupy

_standing_in = contextlib.ExitStack()                      # never closed
_moving: ContextVar[bool] = ContextVar("take host arrays to the device?", default=False)


def install():
    """For the whole process.  A real GPU is used where there is one."""
    try:
        device.cupy()
    except UserError:
        _standing_in.enter_context(fakecupy.installed())
    assert backend.module(sys.modules["cupy"].ndarray) is not None
    plain_call, plain_use = Op.__call__, backend.use

    def call(op, *inputs, **options):
        if not _moving.get() or not all(device.on_host(x) for x in inputs):
            return plain_call(op, *inputs, **options)
        y, back = plain_call(op, *map(put, inputs), **options)
        return brought(y), lambda dy: brought(back(tuple(map(put, dy)) if isinstance(dy, tuple) else put(dy)))

    @contextlib.contextmanager
    def use(name):
        token = _moving.set(name == "cuda")
        try:
            with plain_use(name):
                yield
        finally:
            _moving.reset(token)

    Op.__call__, backend.use = call, use


def put(x):
    """The array, or the number, on the device."""
    return sys.modules["cupy"].asarray(x) if isinstance(x, np.ndarray | np.generic) else x


def brought(results):
    """The arrays on the host: one, or a tuple of them."""
    if isinstance(results, tuple):
        return tuple(map(brought, results))
    if results is None or device.on_host(results):
        return results
    return device.host(results)[()]                         # of no axes: a NumPy number, as the kernels of the CPU give


def share_memory(a, b):
    if device.on_host(a):
        return np.shares_memory(a, b)
    return max(a.data.ptr, b.data.ptr) < min(a.data.ptr + a.nbytes, b.data.ptr + b.nbytes)


def moved(on, tree):
    """A tree, or an array, on the backend's device."""
    return params.rebuild(tree, (put(a) if on == "cuda" else a for _, a in params.leaves(tree)))
