"""Run the generic tests on a GPU, or on the stand-in for one.

    PYLLAMA_TEST_GPU=1 python -m pytest -k cuda tests/test_ops.py tests/test_laws*.py tests/test_models.py

Within backend.use("cuda") an op copies inputs from the host to the device, and its results back.  So tests that know
nothing of devices run the kernels.  Arrays that are on the device already stay there.
"""
import contextlib
import sys

import numpy as np

from pyllama import backend, device, params
from pyllama.errors import UserError
from pyllama.op import watching
from pyllama.ops import linear_cross_entropy
from pyllama.testing import problems
from tests import fakecupy

_standing_in = contextlib.ExitStack()                      # never closed


def install():
    """Let the whole process do so, on a real GPU if there is one."""
    try:
        device.cupy()
    except UserError:
        _standing_in.enter_context(fakecupy.installed())
        problems.Sizes.candidates = few_blocks
    assert backend.module(sys.modules["cupy"].ndarray) is not None
    plain_use = backend.use

    def move(op, call, inputs, options):
        if backend._forced.get() != "cuda" or not all(device.on_host(x) for x in inputs):
            return call(*inputs, **options)
        y, back = call(*map(put, inputs), **options)
        return brought(y), lambda dy: brought(back(tuple(map(put, dy)) if isinstance(dy, tuple) else put(dy)))

    @contextlib.contextmanager
    def use(name):
        with plain_use(name), watching(move) if name == "cuda" else contextlib.nullcontext():
            yield

    backend.use = use


_candidates = problems.Sizes.candidates


ALIKE = {"B": max(problems.SMALL), "G": max(problems.SMALL)}
ROWS = {"N": 65}                                            # two chunks of linear_cross_entropy


def few_blocks(sizes, axis):
    """The candidates of an axis, but few sequences, groups of heads and rows of linear_cross_entropy: each is a block
    of its own, the same for all, and the stand-in runs one thread after another."""
    of_rows = getattr(sizes, "declared", None) is linear_cross_entropy.inputs
    most = ALIKE | ROWS if of_rows else ALIKE
    return [n for n in _candidates(sizes, axis) if n <= most.get(axis, n)]


def put(x):
    """The array, or the number, on the device."""
    return sys.modules["cupy"].asarray(x) if isinstance(x, np.ndarray | np.generic) else x


def brought(results):
    """The array on the host, or a tuple of arrays."""
    if isinstance(results, tuple):
        return tuple(map(brought, results))
    if results is None or device.on_host(results):
        return results
    return device.host(results)[()]                         # 0-d arrays become numbers, as on the CPU


def share_memory(a, b):
    if device.on_host(a):
        return np.shares_memory(a, b)
    return max(a.data.ptr, b.data.ptr) < min(a.data.ptr + a.nbytes, b.data.ptr + b.nbytes)


def moved(on, tree):
    """A tree, or an array, on the backend's device."""
    return params.rebuild(tree, (put(a) if on == "cuda" else a for _, a in params.leaves(tree)))
