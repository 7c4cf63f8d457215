"""Kernels as cupy.RawModule offers them, launched on the CPU; arguments are checked, which CuPy takes as they come."""
import ctypes
import re
import threading
from ctypes import POINTER, Structure, c_char, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np

from tests.cuda_on_cpu import build, memory
from tests.cuda_on_cpu.errors import KernelError

ORDERS = ("forward", "reverse", "random")
MAX_GRID, MAX_BLOCK, MAX_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
MAX_BLOCKS = 2**22                                          # that the checker can tell apart
SHARED = 48 << 10                                           # bytes that a block can have without asking for more

C_NAMES = {"f4": "float", "f8": "double", "b1": "bool", "i1": "char", "i2": "short", "i4": "int", "i8": "long long",
           "u1": "unsigned char", "u2": "unsigned short", "u4": "unsigned", "u8": "unsigned long long"}

_one_at_a_time = threading.Lock()                           # a process has one set of handlers of signals


class Parameter(Structure):                                 # of cuda.h
    _fields_ = [("pointer", c_uint8), ("kind", c_char), ("bytes", c_uint8)]


class Entry(Structure):
    _fields_ = [("run", c_void_p), ("parameters", POINTER(Parameter)), ("count", c_int), ("max_threads", c_int)]


class Region(Structure):                                    # of launch.h
    _fields_ = [("low", c_uint64), ("high", c_uint64), ("granule", c_uint32), ("shared", c_uint32)]


class Launch(Structure):
    _fields_ = [("run", c_void_p), ("args", POINTER(c_void_p)),
                ("regions", POINTER(Region)), ("region_count", c_uint32),
                ("grid", c_uint32 * 3), ("block", c_uint32 * 3), ("shared_mem", c_uint32),
                ("order", c_uint32), ("seed", c_uint64)]


class Place(Structure):
    _fields_ = [("pc", c_uint64), ("block", c_uint32 * 3), ("thread", c_uint32 * 3), ("known", c_uint32)]


class Failure(Structure):
    _fields_ = [("what", c_char * 120), ("relation", c_char * 80), ("here", Place), ("other", Place),
                ("address", c_uint64)]


class Module:
    """The kernels of a CUDA text.

    options are RawModule's, of which -std and -D are understood; checked=True is the build that sees every access.
    """
    def __init__(self, code, options=(), checked=False):
        self.code, self.options, self.checked = code, tuple(options), checked
        self._library = None
        self._lock = threading.Lock()

    def get_function(self, name):
        """The kernel of that name; the first one asked for compiles the module.  KernelError if there is none."""
        with self._lock:
            if not self._library:
                self._library = Library(*build.library(self.code, self.options, self.checked))
        if name not in self._library.kernels:
            raise KernelError(f'there is no kernel {name} among {", ".join(self._library.kernels) or "none"}; '
                              f'one is declared as extern "C" __global__ void {name}(')
        return Kernel(self._library, name)


class Library:
    """A compiled module, loaded."""
    def __init__(self, path, kernels):
        self.path, self.kernels = path, kernels
        self.loaded = ctypes.CDLL(str(path))
        self.loaded.launch.restype = POINTER(Failure)
        self.loaded.image.restype = self.loaded.dynamic.restype = c_void_p
        self.shared = list(self._shared_arrays())

    def _shared_arrays(self):
        """(the kernel it belongs to, or "" for a function's; name; Region) of each __shared__ array."""
        symbols = build.run("nm", "-C", "-f", "sysv", self.path)
        pattern = r"^(.+?) *\|(\w+)\|[^|]*\| *OBJECT\|(\w+)\|.*\|cuda_shared$"
        for symbol, start, size in re.findall(pattern, symbols, re.MULTILINE):
            owner, _, name = symbol.rpartition("::")
            low = self.loaded.image() + int(start, 16)
            yield owner if owner in self.kernels else "", name, Region(low, low + int(size, 16), 4, 1)

    def line(self, pc):
        """"file:line" of a return address; if the function was inlined, also where, from the inside out."""
        frames = build.run("addr2line", "-i", "-e", self.path, hex(pc - 1)).splitlines()
        frames = [Path(re.sub(r" \(.*", "", frame)).name for frame in frames]
        return " called at ".join(f for f in frames if not f.startswith(("cuda.h:", "??"))) or "an unknown line"


class Kernel:
    """A kernel of a library; max_dynamic_shared_size_bytes can be raised, as CuPy's."""
    def __init__(self, library, name):
        self.name, self._library = name, library
        self._entry = Entry.in_dll(library.loaded, f"entry_{name}")
        self.parameters = ["*" * p.pointer + p.kind.decode() + str(p.bytes)
                           for p in self._entry.parameters[:self._entry.count]]
        self._shared = [(f"the shared array {array}", r) for owner, array, r in library.shared if owner in ("", name)]
        self.static_shared = sum(r.high - r.low for _, r in self._shared)
        self.max_dynamic_shared_size_bytes = SHARED - self.static_shared

    def __call__(self, grid, block, args, *, shared_mem=0, order="forward", seed=0):
        """Run the kernel on arrays in device memory, in place.

        TypeError or KernelError if the launch is none of CUDA's, KernelError if the kernel does what it must not.
        """
        grid, block = self._size("grid", grid, MAX_GRID), self._size("block", block, MAX_BLOCK)
        self._check_limits(grid, block, shared_mem)
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} has {len(self.parameters)} parameters and was given {len(args)} arguments")
        values = [self._value(i, wanted, a) for i, (wanted, a) in enumerate(zip(self.parameters, args, strict=True))]
        names, regions = zip(*self._regions(args, shared_mem), strict=True)
        launch = Launch(self._entry.run, pointers(values), (Region * len(regions))(*regions), len(regions),
                        (c_uint32 * 3)(*grid), (c_uint32 * 3)(*block), shared_mem, ORDERS.index(order), seed)
        with _one_at_a_time:
            failure = self._library.loaded.launch(ctypes.byref(launch))
            if failure:
                raise KernelError(self._sentence(failure.contents, names, regions))

    def _size(self, what, size, limits):
        if not isinstance(size, tuple) or not 1 <= len(size) <= 3 or not all(type(n) is int for n in size):
            raise TypeError(f"{self.name}: the {what} is a tuple of one to three ints, not {size!r}")
        if not all(1 <= n <= limit for n, limit in zip(size, limits, strict=False)):
            raise KernelError(f"{self.name}: the {what} {size} is not between 1 and {limits}")
        return (*size, 1, 1)[:3]

    def _check_limits(self, grid, block, shared_mem):
        blocks, threads = (size[0] * size[1] * size[2] for size in (grid, block))
        most = min(self._entry.max_threads, MAX_THREADS)
        if threads > most:
            raise KernelError(f"{self.name} takes at most {most} threads in a block, not {threads}")
        if blocks > MAX_BLOCKS:
            raise KernelError(f"{self.name}: the executor runs at most {MAX_BLOCKS} blocks, not {blocks}")
        if self.static_shared > SHARED:
            raise KernelError(f"{self.name} has {self.static_shared} bytes of __shared__ arrays; {SHARED} is the limit")
        if self.static_shared + self.max_dynamic_shared_size_bytes > memory.MAX_SHARED:
            raise KernelError(f"{self.name}: a block has at most {memory.MAX_SHARED} bytes of shared memory")
        if not 0 <= shared_mem <= self.max_dynamic_shared_size_bytes:
            raise KernelError(f"{self.name}: shared_mem is {shared_mem}, but max_dynamic_shared_size_bytes is "
                              f"{self.max_dynamic_shared_size_bytes}")

    def _value(self, i, wanted, a):
        """The bytes that the kernel gets for argument i."""
        must_be = f"{self.name}: argument {i} must be {C_NAMES[wanted.lstrip('*')]}{' *' * wanted.startswith('*')}"
        if wanted.startswith("*"):
            if type(a) is int and a == 0:                   # CuPy passes it as eight bytes of 0, the null pointer
                return bytes(8)
            if not isinstance(a, np.ndarray):
                raise TypeError(f"{must_be}, an array, not {type(a).__name__}")
            if code(a) != wanted[1:]:
                raise TypeError(f"{must_be}, not an array of {a.dtype}")
            return np.uint64(a.ctypes.data).tobytes()
        number = np.int64(a) if type(a) is int and -2**63 <= a < 2**63 else np.float64(a) if type(a) is float else a
        if not isinstance(number, np.generic) or code(number) != wanted:
            raise TypeError(f"{must_be}, not {type(a).__name__}")
        return number.tobytes()

    def _regions(self, args, shared_mem):
        """(name, Region) of all that the kernel may touch."""
        allocations = {}
        for i, a in enumerate(args):
            if isinstance(a, np.ndarray):
                low, high = memory.allocation_of(a)
                _, same = allocations.setdefault(low, (f"the array of argument {i}", Region(low, high, a.itemsize, 0)))
                same.granule = min(same.granule, a.itemsize)
        low = self._library.loaded.dynamic()
        return [*allocations.values(), *self._shared,
                ("the dynamic shared memory", Region(low, low + shared_mem, 4, 1))]

    def _sentence(self, failure, names, regions):
        where = nearest(failure.address, names, regions) if failure.address else ""
        text = f"{failure.what.decode()}{where}: kernel {self.name}"
        if failure.here.known:
            text += f", {self._place(failure.here)}"
        if failure.relation:
            text += f", {failure.relation.decode().replace('@', self._place(failure.other))}"
        return text

    def _place(self, place):
        text = f"block {tuple(place.block)} thread {tuple(place.thread)}"
        return f"{text} at {self._library.line(place.pc)}" if place.pc else text


def code(a):
    """The type of an array or a number, in the form of Parameter."""
    return f"{a.dtype.kind}{a.dtype.itemsize}"


def pointers(values):
    """An array of pointers, one to each value; it keeps them alive."""
    buffers = [ctypes.create_string_buffer(v, 8) for v in values]
    array = (c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
    array.buffers = buffers
    return array


def nearest(address, names, regions):
    """Where an address lies in a region, or how far from the nearest, if that is not far."""
    def distance(r):
        return max(r.low - address, address - r.high + 1, 0)

    name, r = min(zip(names, regions, strict=True), key=lambda pair: distance(pair[1]))
    if not distance(r):
        return f" at byte {address - r.low} of {name}"
    if distance(r) > memory.GUARD:
        return ""
    return f", {address - r.high} bytes past the end of {name}" if address >= r.high else \
        f", {r.low - address} bytes before the start of {name}"
