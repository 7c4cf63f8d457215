"""Tensors of torch on the memory of NumPy arrays, and back."""
import sys
from typing import Any

import numpy as np


def is_tensor(x: Any) -> bool:
    return hasattr(x, "is_floating_point")


def has_integers(x: Any) -> bool:
    """Is it a tensor of integers?  Its gradient is None."""
    return is_tensor(x) and not x.is_floating_point() and not x.is_complex()


def tensor(x: Any, like: Any = None) -> Any:
    """An array as a tensor on its memory where torch can, in the layout and on the device of `like`."""
    x = np.asarray(x)
    shared = on_memory(x)
    if like is None:
        return shared
    if tuple(like.shape) == x.shape and has_gaps(like):
        spread = sys.modules["torch"].empty_strided(tuple(like.shape), tuple(like.stride()), dtype=shared.dtype)
        spread.copy_(shared)
        shared = spread
    return shared if like.device.type == "cpu" else shared.to(like.device)


def has_gaps(t: Any) -> bool:
    """Is it a view with a layout of its own?  One whose entries share memory cannot be written to, entry by entry."""
    return not t.is_contiguous() and all(step > 0 or size == 1 for step, size in zip(t.stride(), t.shape, strict=True))


def on_memory(x: np.ndarray) -> Any:
    """A tensor of the same strides; on a copy if torch has no such tensor, or x is read-only."""
    torch = sys.modules["torch"]
    if x.dtype.name == "bfloat16":
        return on_memory(x.view(np.int16)).view(torch.bfloat16)
    if 0 in x.strides and x.size:                           # a broadcast dy is torch's expanded one
        once = x[tuple(slice(0, 1) if step == 0 else slice(None) for step in x.strides)]
        return torch.from_numpy(np.array(once)).expand(x.shape)
    shares = x.flags.writeable and x.flags.aligned and all(step >= 0 and step % x.itemsize == 0 for step in x.strides)
    return torch.from_numpy(x if shares else x.copy())


def array(t: Any) -> np.ndarray:
    """A tensor as an array, on its memory where it lies on the host."""
    t = t.detach()
    if str(t.layout) != "torch.strided":
        t = t.to_dense()
    t = t.resolve_conj().resolve_neg().cpu()
    if str(t.dtype) == "torch.bfloat16":
        import ml_dtypes

        return t.view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16)
    return t.numpy()


def show_changes(x: Any, t: Any) -> None:
    """Do to x what the function did to the tensor, where this is a copy."""
    if isinstance(x, np.ndarray) and x.flags.writeable and x.size and not np.shares_memory(x, new := array(t)):
        x[...] = new
