"""The device of an array: the host, or a GPU through CuPy.

The type of an array determines its device.  A function allocates new arrays on the device of its arguments (like=);
only the start and the end of a computation name a device.  Reading a number from a GPU waits until the GPU has finished
all earlier work, so it is done rarely.
"""
import numpy as np

from pyllama.errors import UserError, optional


def like(name: str, dtype: str = "float32") -> np.ndarray:
    """An empty array on the device "cpu" or "cuda", for np.asarray(x, like=...).

    dtype   of the computation on that device

    Raises UserError if CuPy or the GPU is missing, or if the device does not compute in this dtype.
    """
    require_dtype(dtype, name == "cpu")
    return np.empty(0) if name == "cpu" else cupy().empty(0)


def require_dtype(dtype: str, host: bool) -> None:
    """Raise UserError if the host, or else a GPU, does not compute in this dtype."""
    if dtype == "bfloat16" and not host:
        raise UserError("bfloat16 is computed only on the CPU; set device to cpu, or dtype to float32")


def cupy():
    """Import CuPy.

    Raises UserError if it is not installed, does not load, or cannot use a GPU.
    """
    cupy = optional("cupy", "a GPU")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(f"CuPy is installed but finds no GPU: {error}; install NVIDIA's driver, or compute on the CPU"
                        ) from None
    if not count:
        raise UserError("CuPy is installed but the driver offers no GPU; check CUDA_VISIBLE_DEVICES, or compute on the "
                        "CPU")
    return cupy


def on_host(x) -> bool:
    """Is x a NumPy array or a number?"""
    return isinstance(x, np.ndarray | np.generic | float | int)


def host(x) -> np.ndarray:
    """The array on the host.  Waits for the GPU if the array is on one."""
    return x if on_host(x) else x.get()


def read(*numbers) -> list[float]:
    """Numbers or 0-d arrays as Python floats.  Those on a GPU take one wait together."""
    if all(map(on_host, numbers)):
        return [float(x) for x in numbers]
    return host(np.stack([np.asarray(x, np.float64, like=next(n for n in numbers if not on_host(n)))
                          for x in numbers])).tolist()
