"""The names of cupy and cupyx, over NumPy's functions."""
import functools
import types

import numpy as np

from tests.fakecupy import gpu, rules
from tests.fakecupy.array import KEEP_ORDER, arrays_in, index, ndarray, new, sent, unwrap, wrap
from tests.fakecupy.counts import allow_synchronize, count

SYNC = {"nonzero", "flatnonzero", "argwhere", "unique", "compress", "extract", "bincount", "histogram", "isin",
        "setdiff1d", "intersect1d", "union1d", "trim_zeros"}        # numbers decide the shape of what they make
ON_HOST = {"shape", "ndim", "size", "isscalar", "iscomplexobj", "isrealobj", "may_share_memory", "shares_memory",
           "result_type", "can_cast", "promote_types", "min_scalar_type", "broadcast_shapes"}
ABSENT = {"nccl"}                                           # wheels come without it


class Namespace(types.ModuleType):
    """A module of CuPy's, `there`, over one of NumPy's, `here`, and what the stand-in has of its own."""

    def __init__(self, there, here=None, **own):
        super().__init__(there.__name__)
        for name in own:
            getattr(there, name)                            # AttributeError: CuPy has no such name
        self.__dict__.update(own, _there=there, _here=here)

    def __getattr__(self, name):
        if name.startswith("__") or name in ABSENT:
            raise AttributeError(f"{self.__name__} has no {name}")
        there, here = getattr(self._there, name), getattr(self._here, name, None)       # AttributeError as CuPy's
        is_class, is_module = isinstance(there, type), isinstance(there, types.ModuleType)
        if there is here or not (callable(there) or is_module) or (is_class and issubclass(there, Exception)):
            return there
        if is_class or (here is None and not is_module):
            raise NotImplementedError(f"the stand-in lacks {self.__name__}.{name}: write it in tests/fakecupy")
        made = Namespace(there, here) if is_module else Function(there, here)
        setattr(self, name, made)
        return made


class Function:
    """A function of CuPy's, computed by NumPy's of the same name."""

    def __init__(self, there, here):
        self._there, self._here, self.__name__ = there, here, here.__name__
        self._is_ufunc = isinstance(there, rules.real().ufunc)

    def __call__(self, *args, **options):
        if self._is_ufunc:
            rules.check_ufunc(self._there, args, options)
        else:
            rules.check_signature(self._there, len(args), tuple(options))
        name = self.__name__
        if name in ("where", "clip") and any(isinstance(x, list | tuple) for x in args):
            raise TypeError(f"{name} takes arrays and scalars, not sequences")
        given = [*arrays_in(args), *arrays_in(options.values())]
        with np.errstate(all="ignore"):                     # a device warns of nothing
            made = self._here(*unwrap(args), **{key: unwrap(x) for key, x in options.items()})
        if name in SYNC or (name == "where" and len(args) == 1):
            count(syncs=1)
        return made if name in ON_HOST else wrap(made, given, name in KEEP_ORDER)

    def at(self, a, indices, b=None):
        rules.check_at(self._there, a.dtype)
        b = (b if isinstance(b, ndarray) else sent(b, a.dtype))._host
        rules.check_to_integer(b, a.dtype)
        self._here.at(a._host, index(indices)[0], b.astype(a.dtype))

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        return self._method("reduce", add=array.sum, multiply=array.prod)(axis, dtype, out, keepdims)

    def accumulate(self, array, axis=0, dtype=None, out=None):
        return self._method("accumulate", add=array.cumsum, multiply=array.cumprod)(axis, dtype, out)

    def outer(self, A, B, **options):
        return self(A.reshape(*A.shape, *[1] * B.ndim), B, **options)

    def _method(self, name, **known):
        if self.__name__ not in known:
            raise NotImplementedError(f"`cupy_{self.__name__}.{name}` is not supported yet")
        return known[self.__name__]


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if subok or ndmin:
        raise NotImplementedError("the stand-in's array() takes neither subok nor ndmin")
    if blocking:
        count(syncs=1)
    if isinstance(obj, list | tuple) and [*arrays_in(obj)]:
        obj = cupy().stack(obj)
    if not isinstance(obj, ndarray):
        return sent(obj, dtype, order or "K")
    made = obj.astype(obj.dtype if dtype is None else dtype, order or "K", copy=bool(copy))
    if copy is False and made is not obj:
        raise ValueError("Unable to avoid copy while creating an array as requested.")
    return made


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, copy, order, blocking=blocking)


def empty(shape, dtype=float, order="C"):
    return empty_like(np.empty(shape, dtype, order))


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    like = np.empty_like(getattr(prototype, "_host", prototype), dtype, order, shape=shape)
    return ndarray(new(like.shape, like.dtype, like.strides))


def copyto(dst, src, casting="same_kind", where=None):
    src = src.item() if isinstance(src, np.ndarray) else unwrap(src)
    np.copyto(dst._host, src, casting, where=True if where is None else unwrap(where))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a, order=order)


def get_array_module(*args):
    return cupy() if any(isinstance(x, ndarray) for x in args) else np


def pinned(shape, dtype=float, order="C"):
    return np.empty(shape, dtype, order)                    # a host array, as CuPy's is


@functools.cache
def cupy():
    """The stand-in for the module cupy."""
    real = rules.real()
    return Namespace(
        real, np, __version__=real.__version__, ndarray=ndarray, ufunc=Function, array=array, asarray=asarray,
        asanyarray=asarray, asnumpy=asnumpy, copyto=copyto, empty=empty, empty_like=empty_like,
        get_array_module=get_array_module, RawKernel=gpu.RawKernel, RawModule=gpu.RawModule, cuda=gpu.cuda(),
        get_default_memory_pool=gpu.MemoryPool, get_default_pinned_memory_pool=gpu.PinnedMemoryPool,
        random=Namespace(real.random))                      # nothing in it: CuPy's streams are not NumPy's


@functools.cache
def cupyx():
    """The stand-in for the module cupyx."""
    return Namespace(rules.real("cupyx"), allow_synchronize=allow_synchronize, empty_pinned=pinned)
