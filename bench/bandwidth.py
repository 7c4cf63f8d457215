"""A worker that measures how fast this machine reads memory.      python -m bench.bandwidth THREADS BYTES

The reader is compiled from bandwidth.c for this processor.
"""
import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.rotation import serve

LEAST = 2                                       # times that the memory is read in a measurement


def compiled():
    """The library; gcc or another compiler that is called cc is needed."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "bandwidth.so"
        subprocess.run(["cc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", target, source], check=True)
        library = ctypes.CDLL(str(target))
    library.filled.restype, library.filled.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.seconds.restype = ctypes.c_double
    library.seconds.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                                ctypes.POINTER(ctypes.c_uint64)]
    return library


def main(threads, memory):
    library = compiled()
    at = library.filled(memory)
    if not at:
        raise MemoryError(f"there are no {memory:,} bytes to read")

    def rate(size):
        """Bytes a second, reading an array of this size again and again."""
        times = LEAST * memory // size
        return size * times / library.seconds(at, size, times, threads, ctypes.c_uint64())

    def answer(size):
        """The rate of the whole memory, and of an array of `size` bytes, which may stay in a cache."""
        return {"memory": rate(memory), "same_size": rate(min(size, memory))}

    serve(answer)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
