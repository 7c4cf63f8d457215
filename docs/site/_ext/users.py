"""Where an op is used: models, kernels and tests, found in the source."""
import functools
import re
from pathlib import Path

from places import ROOT

MODELS = "Models, training, other ops"
KERNELS = "Kernels in C and CUDA"
TESTS = "Tests; tests/test_ops.py runs every op on every backend"
PLACES = {MODELS: ("pyllama/models/*.py", "pyllama/training/*.py", "pyllama/ops/*.py"),
          KERNELS: ("csrc/cpu/*.c", "csrc/cuda/*.cu"),
          TESTS: ("tests/test_*.py",)}


@functools.cache
def users(name: str) -> dict[str, list[str]]:
    """heading -> the files; a heading without any is left out."""
    called = re.compile(rf"(?<![\w.]){name}\(|\bops\.{name}\b")
    found = {MODELS: [path for path in files(MODELS) if path.stem != name and called.search(path.read_text("utf-8"))],
             KERNELS: [path for path in files(KERNELS) if path.stem == name],
             TESTS: [path for path in files(TESTS) if called.search(path.read_text("utf-8"))]}
    return {heading: [path.relative_to(ROOT).as_posix() for path in paths]
            for heading, paths in found.items() if paths}


def files(heading: str) -> list[Path]:
    return [path for pattern in PLACES[heading] for path in sorted(ROOT.glob(pattern)) if path.stem != "__init__"]
