"""Where arrays live: on the host, or on a GPU that CuPy reaches.

Arrays say so themselves: a function makes new ones beside those it is given (like=), and only what begins or ends a
computation names a device.  To read a number from a GPU is to wait for all that it was told to do: it is done rarely.
"""
import numpy as np

from pyllama.errors import UserError, optional


def like(name: str) -> np.ndarray:
    """An empty array on the device "cpu" or "cuda", for np.asarray(x, like=...).  UserError if there is no GPU."""
    return np.empty(0) if name == "cpu" else cupy().empty(0)


def cupy():
    """The module CuPy.  UserError if it is missing, does not load, or finds no GPU: three different sentences."""
    cupy = optional("cupy", "a GPU")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(f"CuPy is there but finds no GPU: {error}; install NVIDIA's driver, or compute on the CPU"
                        ) from None
    if not count:
        raise UserError("CuPy is there but finds no GPU: the driver offers none; see CUDA_VISIBLE_DEVICES, or "
                        "compute on the CPU")
    return cupy


def on_host(x) -> bool:
    return isinstance(x, np.ndarray | np.generic | float | int)


def host(x) -> np.ndarray:
    """The array on the host; waits if it is on a GPU."""
    return x if on_host(x) else x.get()


def read(*numbers) -> list[float]:
    """The numbers, for one wait if they are on a GPU."""
    if all(map(on_host, numbers)):
        return [float(x) for x in numbers]
    return host(np.stack([np.asarray(x, np.float64, like=next(n for n in numbers if not on_host(n)))
                          for x in numbers])).tolist()
