"""Find a function by its name on a command line: "module:function" or "path/file.py:function".

A file is imported under its own name, without .py.  Its folder comes first in sys.path while it is imported, as if
Python ran it, and last from then on, for imports inside its functions.
"""
import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pyllama.errors import UserError

OURS = str(Path(__file__).parent) + os.sep                      # whose lines are not the user's
LIBRARIES = tuple(str(Path(str(library.__file__)).parent) + os.sep for library in (importlib, np))


def is_named(text: str) -> bool:
    """Does the text name something in a module or a file?  The name of an op has no colon."""
    return ":" in text


def find(name: str) -> Callable:
    """The function, or another callable, of that name.

    Raises UserError, with cause and cure, unless the module or the file exists, can be imported and has it.

    >>> from pyllama.testing.named import find
    >>> find("math:hypot")(3, 4)
    5.0
    >>> find("math:hypo")
    Traceback (most recent call last):
    pyllama.errors.UserError: math has no 'hypo'; did you mean hypot?
    """
    module, target = found_in(name)
    if not callable(target):
        raise UserError(f"{name} is {kind(target)}, not a function; name a function of {module.__name__}")
    return target


def found_in(name: str) -> tuple[ModuleType, Any]:
    """(module, what it has under that name).  Raises UserError."""
    where, _, path = name.rpartition(":")
    if not where or not path:
        raise UserError(f"{name!r} does not name a function; write module:function or path/file.py:function")
    if ":" in where and not Path(where).is_file():
        raise UserError(f"{name!r} has two colons; write module:function or path/file.py:function")
    module = from_file(Path(where)) if where.endswith(".py") or os.sep in where else from_module(where)
    target: Any = module
    for part in path.split("."):
        if not hasattr(target, part):
            raise UserError(missing(module.__name__, target, part))
        target = getattr(target, part)
    return module, target


def from_module(name: str) -> ModuleType:
    """The module of that name, which may be in the current folder.  Raises UserError."""
    with searched(Path.cwd()):
        importlib.invalidate_caches()                           # the file may be newer than the folder's listing
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"there is no module {error.name!r}; run in the folder that contains it, or write "
                                f"path/file.py:function") from None
            raise UserError(f"{name} cannot be imported: {cause(error)}; fix that first") from error


def from_file(path: Path) -> ModuleType:
    """The file as a module.  A module of the same name that was imported before stays as it is.  Raises UserError."""
    if not path.is_file():
        raise UserError(f"the file {path} does not exist; {alternatives(path)}")
    return imported(path, path.resolve(), path.stat().st_mtime_ns)


@functools.lru_cache(64)                                        # a function and its backward share one module
def imported(path: Path, location: Path, changed: int) -> ModuleType:
    """The module of a file at that location, last changed at that time."""
    name, before = path.stem, sys.modules.get(path.stem)
    spec = importlib.util.spec_from_file_location(name, location)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a file of Python; write path/file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module                                  # dataclasses look their module up while they are made
    try:
        with searched(location.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        relative = isinstance(error, ImportError) and "relative import" in str(error)
        cure = f"write package.{name}:function" if relative else "fix that first"
        raise UserError(f"{path} cannot be imported: {cause(error)}; {cure}") from error
    finally:
        if before is not None:
            sys.modules[name] = before
    return module


@contextlib.contextmanager
def not_ending(name: str):
    """Raises UserError if code of that name calls sys.exit() within this context: the command would end unseen."""
    try:
        yield
    except SystemExit as error:
        raise UserError(f"{name} ended Python: {cause(error)}; let it return, or raise another error") from error


@contextlib.contextmanager
def searched(folder: Path):
    """Within this context the folder comes first in sys.path; from then on it is there, last."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def cause(error: BaseException) -> str:
    """The error, with the place in the user's own code that raised it."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno} of {Path(error.filename or '?').name})"
    said, place = str(error), line_in(error)
    if isinstance(error, AssertionError):
        said = said.partition("\n")[0]                          # pytest adds lines
    return f"{type(error).__name__}: {said}".removesuffix(": ") + (f" ({place})" if place else "")


def line_in(error: BaseException) -> str:
    """The line of the user's own code that raised the error; "" if it was raised by ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if not frame.filename.startswith(("<frozen", *LIBRARIES))]
    if not frames or frames[-1].filename.startswith(OURS):
        return ""
    return f"line {frames[-1].lineno} of {Path(frames[-1].filename).name}"


def reason(error: BaseException) -> str:
    """The sentence of an error that we raised; the cause of another."""
    return cause(error) if line_in(error) else str(error)


def missing(where: str, target: Any, part: str) -> str:
    """A sentence about an attribute that does not exist."""
    if inspect.isroutine(target):
        return (f"{where}:{target.__qualname__} is a function, and what it defines exists only while it runs; define "
                f"{part!r} outside of it, or name {where}:{target.__qualname__}")
    names = [name for name in dir(target) if not name.startswith("_")]
    close = difflib.get_close_matches(part, names, 1)
    functions = [name for name in names if callable(getattr(target, name, None))]
    hint = f"did you mean {close[0]}?" if close else \
        f"its functions are {', '.join(functions[:8])}{', ...' if len(functions) > 8 else ''}" if functions else \
        "it has no function"
    return f"{where} has no {part!r}; {hint}"


def alternatives(path: Path) -> str:
    """What the name of a file that does not exist may have meant."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}, so check the path"
    close = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], 1)
    return f"did you mean {path.parent / close[0]}?" if close else "check the spelling"


def kind(value: Any) -> str:
    """The kind of a value, in two words."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
