"""See each call of a function, whoever makes it; and compare a mutant's results with the original's, call by call."""
import ast
import contextlib
import copy
import functools
import hashlib
import inspect
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.testing.mutation.planting import copied, definition_of, plant, rebuilt

WATCH = "__pyllama_watch_{}__"                  # the name in the function's globals; the process is a fork


def can_be_watched(function: types.FunctionType) -> bool:
    """Generators and coroutines run after the call has returned."""
    return not (inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)
                or inspect.isasyncgenfunction(function))


def watch(function: types.FunctionType, watcher: Callable[[tuple, dict], Any], definition: Any = None) -> None:
    """From now on a call of the function returns watcher(args, kwargs).  Its signature stays.

    definition      of the function, if it is not the one in its file
    """
    definition = definition or definition_of(function)
    a = definition.args
    args = [*(x.arg for x in [*a.posonlyargs, *a.args]), *([f"*{a.vararg.arg}"] if a.vararg else [])]
    kwargs = [*(f"{x.arg!r}: {x.arg}" for x in a.kwonlyargs), *([f"**{a.kwarg.arg}"] if a.kwarg else [])]
    name = WATCH.format(id(function))               # a module may have several watched functions
    call = f"return {name}(({', '.join([*args, ''])}), {{{', '.join(kwargs)}}})"
    trampoline = ast.FunctionDef(definition.name, a, ast.parse(call).body, [])
    function.__globals__[name] = watcher
    defaults, keyword_defaults = function.__defaults__, function.__kwdefaults__
    plant(function, ast.unparse(ast.fix_missing_locations(trampoline)))
    function.__defaults__, function.__kwdefaults__ = defaults, keyword_defaults


class Observer:
    """Counts the calls of a function, and takes the digest of their arguments.

    name    what is observed
    calls   how many there were
    """

    def __init__(self, name: str, functions: Callable[[], list[types.FunctionType]]):
        self.name, self.functions = name, functions
        self.calls, self.digest = 0, hashlib.blake2b(digest_size=16)

    def start(self, both_passes: bool = False) -> None:
        """Observe from now on, in this process."""
        for function in self.functions():
            if can_be_watched(function):
                watch(function, functools.partial(self.passed_on, copied(function)))

    def passed_on(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        self.note((args, kwargs))
        return function(*args, **kwargs)

    def note(self, arguments: Any) -> None:
        self.calls += 1
        update(self.digest, arguments)

    def taken(self) -> str:
        """The digest of all arguments since the last time; empty if there was no call."""
        calls, taken = self.calls, self.digest.hexdigest()
        self.calls, self.digest = 0, hashlib.blake2b(digest_size=16)
        return taken if calls else ""


def update(digest: Any, value: Any) -> None:
    """Add a value, or a tree of values, to a digest."""
    if isinstance(value, np.ndarray | np.generic):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes() if value.dtype.kind != "O" else repr(value).encode())
    elif isinstance(value, tuple | list):
        digest.update(f"{len(value)}".encode())
        for item in value:
            update(digest, item)
    elif isinstance(value, dict):
        update(digest, sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        digest.update(repr(value).encode())
    elif hasattr(value, "__array__"):                   # of another library
        update(digest, np.asarray(value))
    else:                                               # its address would differ from run to run
        digest.update(type(value).__name__.encode())


class Comparison:
    """Runs a mutant where its function is called, and beside it mutant and original on copies of the arguments.

    calls       how many there were
    alike       were all results, exceptions and changed arguments the same?

    A function that is returned, such as the back of y, back, is compared in the same way when it is called.
    """

    def __init__(self, function: types.FunctionType, original: types.FunctionType, text: str):
        self.calls, self.alike = 0, True
        mutant = rebuilt(function, text)
        watch(function, functools.partial(self.run, mutant, original, mutant), ast.parse(text).body[0])

    def run(self, mutant: Callable, original: Callable, twin: Callable, args: tuple, kwargs: dict) -> Any:
        """mutant(*args, **kwargs), after original and twin have run on copies of the arguments."""
        self.calls += 1
        try:
            theirs, ours = copy.deepcopy((args, kwargs)), copy.deepcopy((args, kwargs))
        except Exception:                       # such as a generator or a lock
            self.alike = False
            return mutant(*args, **kwargs)
        with random_numbers_kept():
            expected = outcome(original, *theirs)
        with random_numbers_kept():
            result = outcome(twin, *ours)
        self.alike = self.alike and same(expected, result) and same(theirs, ours)
        return self.shadowed(mutant(*args, **kwargs), expected[1], result[1])

    def shadowed(self, result: Any, expected: Any, ours: Any) -> Any:
        """The result, its functions replaced by those that compare when they are called."""
        if type(result) in (tuple, list) and type(result) is type(expected) is type(ours) and (
                len(result) == len(expected) == len(ours)):
            return type(result)(map(self.shadowed, result, expected, ours))
        if isinstance(result, types.FunctionType) and callable(expected) and callable(ours):
            @functools.wraps(result)
            def compared(*args, **kwargs):
                return self.run(result, expected, ours, args, kwargs)
            return compared
        return result


@contextlib.contextmanager
def random_numbers_kept():
    """Restore the state of the global generators afterwards."""
    python, numpy = random.getstate(), np.random.get_state()     # noqa: NPY002 -- the test may use it
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)                 # noqa: NPY002


def outcome(function: Callable, args: tuple, kwargs: dict) -> tuple[str, Any]:
    """("returned", value) or ("raised", (type, text))."""
    try:
        return "returned", function(*args, **kwargs)
    except Exception as error:
        return "raised", (type(error), str(error))


def same(a: Any, b: Any) -> bool:
    """Are two values equal, their types and precisions included?  NaN equals NaN, and a function any function."""
    if isinstance(a, type) or isinstance(b, type):
        return a is b
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.dtype.kind == "O":
            return all(map(same, np.ravel(a), np.ravel(b)))
        return bool(np.all((a == b) | ((a != a) & (b != b))))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if callable(a):
        return True
    if type(a).__eq__ is object.__eq__ and hasattr(a, "__dict__"):
        return same(vars(a), vars(b))
    with contextlib.suppress(Exception):
        return bool(a == b) or bool(a != a and b != b)
    with contextlib.suppress(Exception):        # arrays of other libraries
        return same(np.asarray(a), np.asarray(b))
    return False
