"""What processes that share a step do together.  One process alone is the case Solo, not an `if`.

    comm.rank, comm.size      who am I, of how many
    comm.add(x)               x ← the sum of everybody's x, in place; the same bits for all

Each takes its share of a step's rows, and the sums of the losses and of the gradients are those of the whole step, for
every loss is divided by the targets of the whole.  What is random depends on the row's number in the whole step: so the
model learns the same however many share the work, to rounding.
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
    rank: int
    size: int
    stop: bool                                              # does this process want to stop after the step?
    stopped: bool                                           # does any?  All learn it in the same step, and stop

    def add(self, x) -> None: ...


class Solo:
    """One process: nothing to share, nothing to add."""

    rank, size, stop, stopped = 0, 1, False, False

    def add(self, x) -> None:
        pass


class Nccl:
    """A process for each GPU, of one machine or of several; sums by NVIDIA's library, on the current stream."""

    def __init__(self, rank: int, size: int, identity):
        nccl = device.cupy().cuda.nccl
        self.stop = self.stopped = False
        self.rank, self.size, self._kinds = rank, size, {"f": nccl.NCCL_FLOAT32, "d": nccl.NCCL_FLOAT64}
        self._sum, self._all = nccl.NCCL_SUM, nccl.NcclCommunicator(size, identity, rank)

    def add(self, x) -> None:
        stream = device.cupy().cuda.get_current_stream()
        self._all.allReduce(x.data.ptr, x.data.ptr, x.size, self._kinds[x.dtype.char], self._sum, stream.ptr)


def share(count: int, comm: Communicator) -> range:
    """Which of `count` rows are this process's."""
    return range(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)


def from_environment(folder: Path, on: str) -> Communicator:
    """Solo, or Nccl where a launcher (torchrun, or srun and mpiexec with these names set) started several processes:
    WORLD_SIZE and RANK say how many and who, LOCAL_RANK which GPU this one has.  They meet by a file in `folder`, which
    all see.  If one fails, the launcher must end the others: they would wait for it.

    Raises UserError if these numbers make no sense, the device is no GPU, or CuPy has no NCCL.
    """
    try:
        size, rank = (int(os.environ.get(name, usual)) for name, usual in (("WORLD_SIZE", "1"), ("RANK", "0")))
        local = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE, RANK and LOCAL_RANK must be whole numbers: {error}; unset them to train alone"
                        ) from None
    if size == 1:
        return Solo()
    if not 0 <= rank < size:
        raise UserError(f"WORLD_SIZE is {size} and RANK {rank}, which must be from 0 to one less; unset both to train "
                        f"alone")
    if on != "cuda":
        raise UserError(f"WORLD_SIZE is {size}, but several processes can share GPUs only; set --device cuda, or unset "
                        f"WORLD_SIZE")
    cuda = device.cupy().cuda
    if not getattr(cuda.nccl, "available", False):
        raise UserError("CuPy finds no NCCL, by which GPUs share their gradients: pip install nvidia-nccl-cu13")
    if not 0 <= local < cuda.runtime.getDeviceCount():
        raise UserError(f"LOCAL_RANK is {local}, but here are {cuda.runtime.getDeviceCount()} GPUs; start as many "
                        f"processes on a machine as it has, and let the launcher set LOCAL_RANK")
    cuda.Device(local).use()
    launch = next((os.environ[name] for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_PORT")
                   if os.environ.get(name)), "0")
    return meet(folder / f"nccl.{launch}.id", rank, size, cuda.nccl)


def meet(file: Path, rank: int, size: int, nccl) -> Nccl:
    """Nccl among processes that know each other by a number: the first makes it and writes it down for the others."""
    if rank == 0:
        identity = nccl.get_unique_id()
        file.parent.mkdir(parents=True, exist_ok=True)
        rewrite(file, [",".join(map(str, identity)).encode()])
        try:
            return Nccl(rank, size, identity)                   # when all have come
        finally:
            file.unlink(missing_ok=True)                    # or the next launch would take it for its own
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            return Nccl(rank, size, tuple(map(int, file.read_text().split(","))))
        except (OSError, ValueError):                       # not there yet
            time.sleep(0.1)
    raise UserError(f"process {rank} found no {file} in {PATIENCE} seconds; let all processes share --out_dir")


def first_alone(comm: Communicator, make: Callable, like):
    """make() in the first process, then in the others, which find what it made."""
    result = make() if comm.rank == 0 else None
    if comm.size > 1:
        here = np.zeros(1, like=like)
        comm.add(here)
        device.host(here)                                   # waits until the first has come
    return result if comm.rank == 0 else make()
