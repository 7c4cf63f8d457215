"""Communication between processes that share the training steps.  A single process is the case Solo, not an `if`.

    comm.rank, comm.size      the number of this process, and the number of processes
    comm.add(x)               x ← the sum of all processes' x, in place; the same bits in all

Each process takes its share of the rows of a step.  Its loss is divided by the targets of the whole step, so the sums
of losses and gradients are those of the step.  Random numbers depend on the number of the row in the step.  The number
of processes therefore affects the results only by rounding.
"""
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from pyllama import device
from pyllama.errors import UserError
from pyllama.files import rewrite

PATIENCE = 60                                               # seconds to wait for the first process


class Communicator(Protocol):
    """The processes that share the training steps, seen from one of them."""
    rank: int                                               # number of this process: 0 ... size - 1
    size: int                                               # number of processes
    stop: bool                                              # set by this process to stop after the step
    stopped: bool                                           # whether any process did; the same in all, and all stop

    def add(self, x) -> None:
        """Replace x by its sum over all processes, in place."""


class Solo:
    """A single process, which has nothing to add."""

    rank, size, stop, stopped = 0, 1, False, False

    def add(self, x) -> None:
        pass


class Nccl:
    """One process for each GPU, on one or several machines.  NVIDIA's library NCCL adds, on the current stream.

    identity   nccl.get_unique_id() of the first process
    """

    def __init__(self, rank: int, size: int, identity):
        nccl = device.cupy().cuda.nccl
        self.stop = self.stopped = False
        self.rank, self.size, self._kinds = rank, size, {"f": nccl.NCCL_FLOAT32, "d": nccl.NCCL_FLOAT64}
        self._sum, self._all = nccl.NCCL_SUM, nccl.NcclCommunicator(size, identity, rank)

    def add(self, x) -> None:
        stream = device.cupy().cuda.get_current_stream()
        self._all.allReduce(x.data.ptr, x.data.ptr, x.size, self._kinds[x.dtype.char], self._sum, stream.ptr)


def share(count: int, comm: Communicator) -> range:
    """The range of this process's rows, out of `count`."""
    return range(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)


def from_environment(folder: Path, on: str) -> Communicator:
    """Nccl if a launcher started several processes, otherwise Solo.

    folder   a folder that all processes share, for a file by which they find each other
    on       the device: "cpu" or "cuda"

    The launcher (torchrun, or srun and mpiexec with these variables set) sets WORLD_SIZE to the number of processes,
    RANK to the number of this one, and LOCAL_RANK to the number of its GPU.  If a process fails, the launcher must end
    the others, because they would wait for it.

    Raises UserError if these numbers are invalid, the device is not a GPU, or CuPy has no NCCL.
    """
    try:
        size, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
        local = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE, RANK and LOCAL_RANK must be whole numbers: {error}; unset them to train alone"
                        ) from None
    if size == 1:
        return Solo()
    if not 0 <= rank < size:
        raise UserError(f"WORLD_SIZE is {size} and RANK {rank}, but RANK must be at least 0 and below WORLD_SIZE; "
                        f"unset both to train alone")
    if on != "cuda":
        raise UserError(f"WORLD_SIZE is {size}, but several processes need GPUs; set device to cuda, or unset "
                        f"WORLD_SIZE")
    cuda = device.cupy().cuda
    if not getattr(cuda.nccl, "available", False):
        raise UserError("CuPy finds no NCCL, which adds the GPUs' gradients: pip install nvidia-nccl-cu13")
    if not 0 <= local < cuda.runtime.getDeviceCount():
        raise UserError(f"LOCAL_RANK is {local}, but there are {cuda.runtime.getDeviceCount()} GPUs here; start one "
                        f"process for each GPU, and let the launcher set LOCAL_RANK")
    cuda.Device(local).use()
    launch = next((os.environ[name] for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_PORT")
                   if os.environ.get(name)), "0")
    return meet(folder / f"nccl.{launch}.id", rank, size, cuda.nccl)


def meet(file: Path, rank: int, size: int, nccl) -> Nccl:
    """Connect the processes: the first writes NCCL's identity to the file, and the others wait for it.

    Raises UserError if the file does not appear within PATIENCE seconds.
    """
    if rank == 0:
        identity = nccl.get_unique_id()
        file.parent.mkdir(parents=True, exist_ok=True)
        rewrite(file, [",".join(map(str, identity)).encode()])
        try:
            return Nccl(rank, size, identity)                   # returns when all have connected
        finally:
            file.unlink(missing_ok=True)                    # or the next launch would read it
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            return Nccl(rank, size, tuple(map(int, file.read_text().split(","))))
        except (OSError, ValueError):                       # not written yet
            time.sleep(0.1)
    raise UserError(f"process {rank} waited {PATIENCE} seconds for {file}; give all processes the same out_dir")


def first_alone(comm: Communicator, make: Callable, like):
    """Call make() in the first process, then in the others, which can reuse its files.  `like` is on the device."""
    result = make() if comm.rank == 0 else None
    if comm.size > 1:
        barrier = np.zeros(1, like=like)
        comm.add(barrier)
        device.host(barrier)                                # waits for the first process
    return result if comm.rank == 0 else make()
