"""Results that the builds of all languages share: kept in build/site until a file changes that they depend on."""
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from places import ROOT

FOLDER = ROOT / "build" / "site" / "results"
SOURCES = ("pyllama/**/*.py", "pyllama/cpu.pyx", "pyllama/testing/catalogue/*.toml", "csrc/*.h", "csrc/cpu/*.*",
           "docs/site/_ext/*.py")


@functools.cache
def fingerprint() -> str:
    return digest(*(path.read_bytes() for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))))


def digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def keep(name: str, make: Callable[[], Any]) -> Any:
    """What make() returns, numbers, texts and lists of them; it runs only if this result is not kept.

    Each result has a file of its own, because several processes build pages at the same time.
    """
    file = FOLDER / fingerprint() / f"{digest(name.encode())}.json"
    if not file.exists():
        write(file, json.dumps(make()))
    return json.loads(file.read_text("utf-8"))


def write(file: Path, text: str) -> None:
    """The whole file or none; the results of older files of the project are removed."""
    for older in FOLDER.glob("*"):
        if older != file.parent:
            shutil.rmtree(older, ignore_errors=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(file)
