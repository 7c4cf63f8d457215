"""Put another text into a function object: every module that imported the function then runs it."""
import __future__

import ast
import linecache
import types
from collections.abc import Callable
from typing import Any

FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names
              if getattr(__future__, name).compiler_flag != 0x10)           # 0x10: nested scopes, as everywhere
LAMBDA, LOCALS, MAKER = "<lambda>", "<locals>", "__pyllama_make__"


class NotPlantable(TypeError):
    """A sentence: why no bug can be planted in this object, and what can be done."""


def function_of(target: Any) -> types.FunctionType:
    """The Python function behind a function, a method, a static method or a wrapper made with functools.wraps.

    Raises NotPlantable.
    """
    inner = target
    while not isinstance(inner, types.FunctionType):
        further = getattr(inner, "__func__", None) or getattr(inner, "__wrapped__", None)
        if further is None or type(inner).__name__ == "Op":
            raise NotPlantable(why_not(target))
        inner = further
    while isinstance(getattr(inner, "__wrapped__", None), types.FunctionType):
        inner = inner.__wrapped__                           # type: ignore[attr-defined]
    if inner.__name__ == LAMBDA:
        raise NotPlantable("it is a lambda; write it as a function with def and a name")
    return inner


def why_not(target: Any) -> str:
    if hasattr(target, "py_func"):                          # numba's dispatcher
        return "it is compiled by numba; set NUMBA_DISABLE_JIT=1, then it is a Python function"
    kind = type(target).__name__
    if isinstance(target, type):
        return f"it is the class {target.__name__}; name one of its methods, such as {target.__name__}.backward"
    if kind in ("builtin_function_or_method", "ufunc", "cython_function_or_method", "fused_cython_function"):
        return "it is compiled, not written in Python; name a Python function"
    if kind == "Op":
        return f"it is an op; score the test with --op {target.name}"
    return f"it is of type {kind}, not a Python function; name a function"


def definition_of(function: types.FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The definition in the file, or in the notebook's cell, that made the function.  Raises NotPlantable."""
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    raise NotPlantable(f"its source is not at {code.co_filename}:{code.co_firstlineno}; keep it in a file")


def plant(function: types.FunctionType, text: str) -> None:
    """Give the function the code and the defaults of the definition in the text."""
    transplant(rebuilt(function, text), function)


def transplant(donor: types.FunctionType, function: types.FunctionType) -> None:
    """Give the function the code and the defaults of another one."""
    for part in ("__code__", "__defaults__", "__kwdefaults__"):
        setattr(function, part, getattr(donor, part))


def rebuilt(function: types.FunctionType, text: str) -> types.FunctionType:
    """A function with the globals and the closure of this one, and the code of the definition in the text."""
    definition: Any = ast.parse(text).body[0]
    definition.decorator_list = []
    file = f"<{function.__qualname__}, replaced>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file           # for tracebacks
    twin = copied(function)
    try:
        transplant(defined(function, definition, file), twin)
    except NameError:                                       # a default reads what only the place of the def knew
        definition.args.defaults, definition.args.kw_defaults = [], [None] * len(definition.args.kwonlyargs)
        twin.__code__ = defined(function, definition, file).__code__
    return twin


def copied(function: types.FunctionType) -> types.FunctionType:
    """The function as it is now; it stays so when the function object gets other code."""
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__,
                              function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def defined(function: types.FunctionType, definition: Any, file: str) -> types.FunctionType:
    """Run the definition inside a function whose parameters are the free variables, so that they stay free.

    A method stands in a class of the same name, for super() and for names that begin with two underscores.
    """
    free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if free:                                                # also what the bug no longer reads
        definition.body += ast.parse(f"if False: ({', '.join(free)},)").body
    owner, = function.__qualname__.split(".")[-2:-1] or [LOCALS]
    stands: Any = definition if owner == LOCALS else ast.ClassDef(owner, [], [], [definition], [])
    scope = [] if stands.name in free else [ast.Global([stands.name])]      # as in the module: not a local variable
    result = stands.name if owner == LOCALS else f"{owner}.__dict__[{definition.name!r}]"
    body = [*scope, stands, *ast.parse(f"return {result}").body]
    parameters = [ast.arg(name) for name in free if name != "__class__"]
    maker: Any = ast.FunctionDef(MAKER, ast.arguments([], parameters, None, [], [], None, []), body, [])
    for node in (maker, stands):
        node.type_params = []                               # Python 3.12 wants them
    module = ast.fix_missing_locations(ast.Module([maker], []))
    namespace = dict(function.__globals__)
    flags = function.__code__.co_flags & FUTURES
    exec(compile(module, file, "exec", flags=flags, dont_inherit=True), namespace)
    return namespace[MAKER](**{argument.arg: contents(free[argument.arg]) for argument in parameters})


def contents(cell: types.CellType) -> Any:
    """What a variable of the closure holds; None before it is assigned."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """Do two functions run the same bytecode?  Then a change of the text is not a bug."""
    parts: list[Callable[[types.CodeType], Any]] = [
        lambda code: code.co_code, lambda code: code.co_names, lambda code: code.co_varnames,
        lambda code: code.co_freevars, lambda code: len(code.co_consts)]
    return all(part(one) == part(other) for part in parts) and all(
        same_code(a, b) if isinstance(a, types.CodeType) and isinstance(b, types.CodeType) else repr(a) == repr(b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True))
