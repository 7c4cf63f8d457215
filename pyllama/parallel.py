"""What processes that share a step do together.  One process alone is the case Solo, not an `if`.

    comm.rank, comm.size      who am I, of how many
    comm.add(x)               x ← the sum of everybody's x, in place; the same bits for all

Each takes its share of a step's rows, and the sums of the losses and of the gradients are those of the whole step, for
every loss is divided by the targets of the whole.  What is random depends on the row's number in the whole step: so the
model learns the same however many share the work, to rounding.
"""
import os
import time
from pathlib import Path
from typing import Protocol

from pyllama import device
from pyllama.errors import UserError
from pyllama.files import rewrite

PATIENCE = 60                                               # seconds to wait for the first process


class Communicator(Protocol):
    rank: int
    size: int

    def add(self, x) -> None: ...


class Solo:
    """One process: nothing to share, nothing to add."""

    rank, size = 0, 1

    def add(self, x) -> None:
        pass


class Nccl:
    """A process for each GPU, of one machine or of several; sums by NVIDIA's library, on the current stream."""

    def __init__(self, rank: int, size: int, identity):
        nccl = device.cupy().cuda.nccl
        self.rank, self.size, self._kinds = rank, size, {"f": nccl.NCCL_FLOAT32, "d": nccl.NCCL_FLOAT64}
        self._sum, self._all = nccl.NCCL_SUM, nccl.NcclCommunicator(size, identity, rank)

    def add(self, x) -> None:
        stream = device.cupy().cuda.get_current_stream()
        self._all.allReduce(x.data.ptr, x.data.ptr, x.size, self._kinds[x.dtype.char], self._sum, stream.ptr)


def share(count: int, comm: Communicator) -> range:
    """Which of `count` rows are this process's."""
    return range(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)


def of_environment(folder: Path, on: str) -> Communicator:
    """Solo, or Nccl where a launcher (torchrun, or srun and mpiexec with these names set) started several processes:
    RANK and WORLD_SIZE say who this is, LOCAL_RANK which GPU it has.  They meet by a file in `folder`, which all see.

    Raises UserError if these numbers make no sense, the device is no GPU, or CuPy has no NCCL.
    """
    try:
        rank, size, local = (int(os.environ.get(name, usual)) for name, usual in
                             (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", os.environ.get("RANK", "0"))))
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}; unset them to train alone"
                        ) from None
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank} of WORLD_SIZE {size}; it must be from 0 to {size - 1}")
    if size == 1:
        return Solo()
    if on != "cuda":
        raise UserError(f"WORLD_SIZE is {size}, but several processes can share GPUs only; set --device cuda, or unset "
                        f"WORLD_SIZE")
    cuda = device.cupy().cuda
    if not getattr(cuda.nccl, "available", False):
        raise UserError("CuPy finds no NCCL, by which GPUs share their gradients: pip install nvidia-nccl-cu13")
    cuda.Device(local).use()
    file = folder / "nccl.id"
    comm = Nccl(rank, size, identity(file, rank, cuda.nccl))        # returns when all have come
    if rank == 0:
        file.unlink()                                               # or the next run's would take it for theirs
    return comm


def identity(file: Path, rank: int, nccl):
    """The number by which the processes of a run know each other: the first makes it, the others read it."""
    if rank == 0:
        made = nccl.get_unique_id()
        file.parent.mkdir(parents=True, exist_ok=True)
        rewrite(file, [",".join(map(str, made)).encode()])
        return made
    until = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > until:
            raise UserError(f"process {rank} found no {file} in {PATIENCE} seconds; let all processes share --out_dir")
        time.sleep(0.1)
    return tuple(map(int, file.read_text().split(",")))
