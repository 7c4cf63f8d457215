"""The stand-in's ndarray: NumPy's numbers in device memory, CuPy's manners."""
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tests.cuda_on_cpu import KernelError, memory
from tests.fakecupy import names, rules
from tests.fakecupy.counts import count

NUMBERS = np.ndarray | np.generic | bool | int | float | complex
KEEP_ORDER = {"asfortranarray", "copy", "full", "full_like", "ones", "ones_like", "ravel", "reshape", "zeros",
              "zeros_like"}                                 # all others make arrays in C order
COMPARISONS = {np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal}


def unwrap(x):
    """What NumPy is to compute with: the numbers of device arrays, and scalars.  TypeError for a host array."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: a host array meets device arrays; take it there by asarray")
    if isinstance(x, list | tuple):
        return type(x)(map(unwrap, x))
    return x


def wrap(x, given=(), keep_order=False):
    """What NumPy made of the arrays `given`, on the device.  They and views of them are what they are; all else is
    copied to memory of its own, in C order unless NumPy's is kept.  A number becomes a 0-d array.
    """
    if isinstance(x, NUMBERS):
        for a in given:
            if a._host is x:
                return a
        x = np.asarray(x)
        return ndarray(x, owner(given[0])) if x.size and in_device_memory(x) else ndarray(copied(x, keep_order))
    if isinstance(x, list | tuple):
        parts = [wrap(part, given, keep_order) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


def arrays_in(values):
    """The device arrays among these values, and in lists and tuples among them."""
    for x in values:
        if isinstance(x, ndarray):
            yield x
        elif isinstance(x, list | tuple):
            yield from arrays_in(x)


def in_device_memory(x):
    try:
        memory.allocation_of(x)
    except KernelError:
        return False
    return True


def owner(a):
    return a if a.base is None else a.base


def new(shape, dtype, strides=None):
    """New device memory, in C order or with its axes in the order of these strides."""
    rules.check_dtype(dtype)
    if strides is None:
        return memory.new(shape, dtype)
    axes = sorted(range(len(shape)), key=lambda i: -strides[i])
    return memory.new([shape[i] for i in axes], dtype).transpose(np.argsort(axes))


def copied(x, keep_order=False):
    """A copy of a NumPy array in new device memory."""
    copy = new(x.shape, x.dtype, x.strides if keep_order else None)
    copy[...] = x
    return copy


def sent(x, dtype=None, order="K"):
    """What is on the host, on the device.  A number travels with a kernel's arguments, which is no copy."""
    x = np.array(x, dtype, order=order)
    if x.ndim:
        count(h2d=1, h2d_bytes=x.nbytes)
    return ndarray(copied(x, keep_order=x.flags.fnc))


def index(key):
    """(the key for NumPy, is an array in it?).  Arrays of the host are sent; a mask costs a sync, as its number of
    places is to be the length of an axis.
    """
    parts, advanced = [], False
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, list | np.ndarray | bool | np.bool_):
            part = sent(part, int if isinstance(part, list) and not part else None)
        if isinstance(part, ndarray):
            advanced, part = True, part._host
            if part.dtype == bool and part.size:
                count(syncs=1)
        parts.append(part)
    if not advanced and Ellipsis not in parts:
        parts.append(Ellipsis)                              # or NumPy would give a number, where CuPy gives a view
    return tuple(parts), advanced


class ndarray(NDArrayOperatorsMixin):
    """What is not written out here is NumPy's, if cupy.ndarray has it, called as cupy.ndarray's may be called."""

    __slots__ = ("__weakref__", "_host", "base")
    __module__ = "cupy"
    __hash__ = None
    __array_priority__ = 100

    def __init__(self, numbers, base=None):
        self._host, self.base = numbers, base

    def __getattr__(self, name):
        there = getattr(rules.real().ndarray, name)         # AttributeError where CuPy's has none
        if not callable(there) or not hasattr(np.ndarray, name):
            raise NotImplementedError(f"the stand-in's ndarray lacks {name}: write it in tests/fakecupy/array.py")

        def method(*args, **options):
            rules.check_signature(there, 1 + len(args), tuple(options))
            if name in ("compress", "nonzero") and self.size:
                count(syncs=1)
            with np.errstate(all="ignore"):
                made = getattr(self._host, name)(*unwrap(args), **{key: unwrap(x) for key, x in options.items()})
            return wrap(made, [self, *arrays_in(args), *arrays_in(options.values())], name in KEEP_ORDER)

        return method

    shape, dtype, ndim, size, nbytes, itemsize, strides = (
        property(lambda self, name=name: getattr(self._host, name))
        for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides"))

    T, mT, real, imag = (property(lambda self, name=name: wrap(getattr(self._host, name), [self]))
                         for name in ("T", "mT", "real", "imag"))

    @property
    def flags(self):
        flags = self._host.flags
        return rules.real()._core.flags.Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    @property
    def data(self):
        return MemoryPointer(self._host.ctypes.data)

    # From the device to the host: the host waits.

    def get(self, stream=None, order="C", out=None, blocking=True):
        if self.size:
            count(d2h=1, d2h_bytes=self.nbytes, syncs=int(blocking))
        if out is None:
            return np.array(self._host, order=order)
        if not isinstance(out, np.ndarray) or (out.dtype, out.shape) != (self.dtype, self.shape):
            raise TypeError(f"out must be a host array of {self.dtype}{list(self.shape)}")
        out[...] = self._host
        return out

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order="C"):
        return self.get().tobytes(order)

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __complex__(self):
        return complex(self.item())

    def __bool__(self):
        return bool(self.get())

    def __repr__(self):
        return repr(self.get())

    def __format__(self, how):
        return format(self.get(), how)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. "
                        "Please use `.get()` to construct a NumPy array explicitly.")

    # From the host to the device.

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype:
            raise TypeError(f"a host array of {self.dtype} can be set, not {getattr(arr, 'dtype', type(arr))}")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        count(h2d=1, h2d_bytes=arr.nbytes)
        self._host[...] = arr

    # On the device.

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        dtype = np.dtype(dtype)
        rules.check_dtype(dtype)
        rules.check_to_integer(self._host, dtype)
        with np.errstate(all="ignore"):
            return wrap(self._host.astype(dtype, order, copy=copy), [self], keep_order=True)

    def copy(self, order="C"):
        return ndarray(copied(np.array(self._host, order=order), keep_order=True))

    def fill(self, value):
        value = np.asarray(value._host if isinstance(value, ndarray) else value)
        rules.check_to_integer(value, self.dtype)
        self._host.fill(value)

    def __getitem__(self, key):
        key, advanced = index(key)
        there = self._host[key]
        return ndarray(copied(there)) if advanced else ndarray(there, owner(self))

    def __setitem__(self, key, value):
        key, advanced = index(key)
        if not advanced and not isinstance(value, ndarray):
            ndarray(self._host[key]).fill(value)
            return
        value = (value if isinstance(value, ndarray) else sent(value, self.dtype))._host
        rules.check_to_integer(value, self.dtype)
        if not advanced:
            rules.check_overlap(self._host[key], value)
        elif value.size > 1:
            rules.check_duplicates(self.shape, key)
        self._host[key] = value

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __pos__(self):
        return self

    def __imatmul__(self, other):
        return NotImplemented                               # CuPy's has none; Python makes a = a @ b of it

    # NumPy's functions on device arrays are CuPy's.

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        """CuPy's ufunc of that name."""
        if "out" in options:
            options["out"], = options["out"]
        name = ufunc.__name__
        try:
            f = getattr(names.cupy(), name)
            f = f if method == "__call__" else getattr(f, method)
        except AttributeError:
            return NotImplemented
        if not all(isinstance(x, ndarray | np.ndarray | rules.SCALARS) for x in (*inputs, options.get("out", 0))):
            return NotImplemented                           # host arrays it goes on with: f refuses most of them
        if ufunc in COMPARISONS:
            inputs = [x.item() if isinstance(x, np.ndarray) and not x.ndim else x for x in inputs]
        return f(*inputs, **options)

    def __array_function__(self, function, types, args, options):
        """CuPy's function of that name.  NumPy's creation functions come here by their like=."""
        f = names.cupy()
        try:
            for name in (*function.__module__.split(".")[1:], function.__name__):
                f = getattr(f, name)
        except AttributeError:
            return NotImplemented
        if not all(issubclass(t, ndarray | np.ndarray) for t in types):
            return NotImplemented
        return f(*args, **options)


class MemoryPointer:
    device_id = 0

    def __init__(self, ptr):
        self.ptr = ptr
