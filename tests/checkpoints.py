"""Small checkpoints that can be told apart, for the tests of them."""
import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np

from pyllama.training import checkpoint

FILES = ["checksums.json", "config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json",
         "trainer.json"]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None         # no test can tell it from a disk, but faster


def contents(step, **more):
    """A checkpoint whose every part tells the step."""
    return {"config": {"step": step}, "tokenizer_json": f'"{step}"', "trainer": {"cursor": step, **more},
            "tensors": {"a": np.full(1000, step, np.float32), "b": np.full((), step, np.int64)},
            "optimizer": {"m": np.full(1000, step, np.float64)}}


def save(run, step, *, keep=3, best=False, **more):
    return checkpoint.save(run, step, **contents(step, **more), keep=keep, best=best)


def save_three(run):
    """Three checkpoints, the second the best."""
    for step in 1, 2, 3:
        save(run, step, best=step == 2)
    return run


def step_of(found):
    """The step that every part of a loaded checkpoint tells."""
    arrays = [*found.tensors.values(), *found.optimizer.values()]
    told = {found.step, found.config["step"], found.trainer["step"], found.trainer["cursor"],
            int(found.tokenizer_path.read_text().strip('"')), *(x for a in arrays for x in np.unique(a).tolist())}
    assert len(told) == 1, told
    return found.step


def steps(run):
    """The names of all that lies in the run's checkpoints."""
    return sorted(folder.name for folder in (run / "checkpoints").iterdir())


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


@contextlib.contextmanager
def scratch():
    """A folder for one example of Hypothesis, or for many saves."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)
