"""Small checkpoints that differ in every part, for the tests of checkpoints."""
import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np

from pyllama.training import checkpoint
from pyllama.training.log import read_log

FILES = ["checksums.json", "config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json",
         "trainer.json"]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None         # for the tests like a disk, but faster


def contents(step, **more):
    """A checkpoint with the step in every part."""
    return {"config": {"step": step}, "trainer": {"cursor": step, **more},
            "tokenizer_files": {"tokenizer.json": f'"{step}"'},
            "tensors": {"a": np.full(1000, step, np.float32), "b": np.full((), step, np.int64)},
            "optimizer": {"m": np.full(1000, step, np.float64)}}


def save(run, step, *, keep=3, best=False, **more):
    return checkpoint.save(run, step, **contents(step, **more), keep=keep, best=best)


def save_three(run):
    """Three checkpoints, the second the best."""
    for step in 1, 2, 3:
        save(run, step, best=step == 2)
    return run


def step_of(loaded):
    """The step of a loaded checkpoint; fails unless every part has the same."""
    arrays = [*loaded.tensors.values(), *loaded.optimizer.values()]
    steps = {loaded.step, loaded.config["step"], loaded.trainer["step"], loaded.trainer["cursor"],
             int(loaded.tokenizer_path.read_text().strip('"')), *(x for a in arrays for x in np.unique(a).tolist())}
    assert len(steps) == 1, steps
    return loaded.step


def outcome(run):
    """What the end of a run leaves, without times: log, arrays, standing, steps of the best and the latest, metrics."""
    saved = checkpoint.load(run)
    assert not saved.notes
    log = [{name: value for name, value in line.items() if name != "seconds"} for line in read_log(run)]
    arrays = {name: a.tobytes() for name, a in (saved.tensors | saved.optimizer).items()}
    metrics = (run / "metrics.json").read_text() if (run / "metrics.json").exists() else None
    return log, arrays, saved.trainer["standing"], checkpoint.load(checkpoint.best(run)).step, saved.step, metrics


def steps(run):
    """The names in the run's folder of checkpoints, sorted."""
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
