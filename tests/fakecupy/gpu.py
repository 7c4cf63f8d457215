"""cupy.cuda: one device that runs each task at once, and kernels, which tests/cuda_on_cpu runs."""
import functools
import threading
import time

from tests import cuda_on_cpu, fakecupy
from tests.cuda_on_cpu import memory
from tests.fakecupy import names, rules
from tests.fakecupy.array import ndarray
from tests.fakecupy.counts import count

MEMORY = 80 * 2 ** 30                       # bytes
_in_use = threading.local()                 # .streams, the innermost last


class RawModule:
    def __init__(self, *, code=None, path=None, options=(), backend="nvrtc", translate_cucomplex=False,
                 enable_cooperative_groups=False, name_expressions=None, jitify=None):
        if path or translate_cucomplex or enable_cooperative_groups or name_expressions or jitify:
            raise NotImplementedError("the stand-in's modules are made of code and options")
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError(f"code must be a str and options a tuple, not {type(code)} and {type(options)}")
        self.code, self.options, self.backend = code, options, backend

    def get_function(self, name):
        return RawKernel(self.code, name, self.options, self.backend)


class RawKernel:
    def __init__(self, code, name, options=(), backend="nvrtc", translate_cucomplex=False, *,
                 enable_cooperative_groups=False, jitify=None):
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self._shared = None                                 # bytes a block may be given, where that has been set

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._kernel().max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self._shared = size

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        for i, x in enumerate(args):
            if not isinstance(x, ndarray | rules.SCALARS):
                raise TypeError(f"{self.name}: argument {i} is a {type(x)}, not an array on the device or a number")
        fakecupy.seed += 1
        try:
            self._kernel()(grid, block, tuple(x._host if isinstance(x, ndarray) else x for x in args),
                           shared_mem=shared_mem, order=fakecupy.order, seed=fakecupy.seed)
        except cuda_on_cpu.KernelError as error:
            error.add_note(f"threads and blocks ran in the order {fakecupy.order!r}, seed {fakecupy.seed}")
            raise
        count(launches=1)

    def _kernel(self):
        kernel = compiled(self.code, self.options, fakecupy.checked).get_function(self.name)
        if self._shared is not None:
            kernel.max_dynamic_shared_size_bytes = self._shared
        return kernel


@functools.cache
def compiled(code, options, checked):
    return cuda_on_cpu.Module(code, options, checked=checked)


class Device:
    compute_capability = "90"

    def __init__(self, device=None):
        self.id = int(device or 0)

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return self.id

    def __enter__(self):
        set_device(self.id)
        return self

    def __exit__(self, *args):
        pass

    def use(self):
        set_device(self.id)

    def synchronize(self):
        count(syncs=1)

    @property
    def mem_info(self):
        return memory_info()


class Stream:
    null: "Stream"

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr, self.is_non_blocking, self.done = 0 if null else id(self), non_blocking, True

    def __enter__(self):
        streams().append(self)
        return self

    def __exit__(self, *args):
        streams().pop()

    def use(self):
        streams()[-1] = self
        return self

    def synchronize(self):
        count(syncs=1)

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        pass


Stream.null = Stream(null=True)


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.done, self.seconds = True, None

    def record(self, stream=None):
        self.seconds = time.perf_counter()

    def synchronize(self):
        count(syncs=1)


class MemoryPool:
    def used_bytes(self):
        return memory.used()

    def total_bytes(self):
        return memory.used()

    def free_bytes(self):
        return 0

    def free_all_blocks(self, stream=None):
        pass


class PinnedMemoryPool:
    def free_all_blocks(self):
        pass


class PinnedMemoryPointer(bytearray):
    """What np.frombuffer makes host arrays of."""

    def size(self):
        return len(self)


def streams():
    if not hasattr(_in_use, "streams"):
        _in_use.streams = [Stream.null]
    return _in_use.streams


def set_device(device):
    if device:
        raise rules.real().cuda.runtime.CUDARuntimeError(101)           # cudaErrorInvalidDevice


def memory_info():
    return MEMORY - memory.used(), MEMORY


def elapsed(start_event, end_event):
    return 1e3 * (end_event.seconds - start_event.seconds)


def properties(device):
    return {"name": b"the stand-in", "totalGlobalMem": MEMORY, "major": 9, "minor": 0, "multiProcessorCount": 132,
            "sharedMemPerBlockOptin": 227 << 10, "warpSize": 32}


@functools.cache
def cuda():
    """The stand-in for the module cupy.cuda."""
    real = rules.real().cuda
    runtime = names.Namespace(
        real.runtime, getDevice=lambda: 0, setDevice=set_device, getDeviceCount=lambda: 1, memGetInfo=memory_info,
        getDeviceProperties=properties, deviceSynchronize=lambda: count(syncs=1), driverGetVersion=lambda: 13000,
        runtimeGetVersion=real.runtime.runtimeGetVersion)
    return names.Namespace(
        real, runtime=runtime, is_available=lambda: True, Device=Device, Stream=Stream, Event=Event,
        MemoryPool=MemoryPool, PinnedMemoryPool=PinnedMemoryPool, get_elapsed_time=elapsed,
        get_current_stream=lambda device_id=-1: streams()[-1], alloc_pinned_memory=PinnedMemoryPointer)
