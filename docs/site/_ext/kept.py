"""Results that the builds of all languages share: kept in build/site until a file changes that they depend on."""
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

from places import ROOT

FILE = ROOT / "build" / "site" / "results.json"
SOURCES = ("pyllama/**/*.py", "pyllama/cpu.pyx", "pyllama/testing/catalogue/*.toml", "csrc/*.h", "csrc/cpu/*.*",
           "docs/site/_ext/*.py")


@functools.cache
def results() -> dict[str, Any]:
    """name -> result, of the files as they are now."""
    try:
        kept = json.loads(FILE.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        kept = {}
    return kept if kept.get("sources") == fingerprint() else {"sources": fingerprint()}


@functools.cache
def fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def keep(name: str, make: Callable[[], Any]) -> Any:
    """What make() returns, numbers, texts and lists of them; it runs only if this result is not kept."""
    if name not in results():
        results()[name] = make()
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(results()), "utf-8")
    return results()[name]
