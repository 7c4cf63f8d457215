"""Small plausible bugs in a Python function: another operator, axis or sign, a lost term, swapped gradients."""
import ast
import copy
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

INSTEAD: dict[type, list[Any]] = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult],
    ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd],
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}
RENAME = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum",
          "cos": "sin", "sin": "cos", "zeros_like": "ones_like"}
PLUMBING = {"range", "slice", "tuple", "len"}           # calls that the function cannot even run without
MODULES = {"np", "numpy", "jnp", "jax", "xp", "cp", "cupy", "torch", "math", "cmath", "scipy", "special", "F"}
KINDS = (ast.expr, ast.stmt, ast.arguments, ast.keyword)
IDLE = {"annotation", "returns", "decorator_list", "type_params"}       # fields that do not run
GIVES_GRADIENTS = re.compile("back|grad|vjp|bwd|pull", re.IGNORECASE)    # names of such functions


def changes(definition: ast.FunctionDef) -> Iterator[tuple[int, str, str, str, str, str]]:
    """(line, function, statement, expression before, after, the function's text with this change)"""
    for parent, field, i, ancestors in places(definition, ()):
        node = child(parent, field, i)
        shown = next((a for a in (parent, *ancestors) if telling(a)), parent) if not telling(node) else None
        statement = next(a for a in (node, parent, *ancestors) if isinstance(a, ast.stmt))
        for replacement in replacements(node, (parent, *ancestors)):
            replacement = ast.fix_missing_locations(ast.copy_location(replacement, node))
            before = first_line(shown or node)
            put(parent, field, i, replacement)
            after, code = first_line(shown or replacement), ast.unparse(definition)
            put(parent, field, i, node)
            yield node.lineno, definition.name, first_line(statement), before, after, code
    yield from ignored_options(definition)


def places(node, ancestors):
    """(parent, field, index, ancestors) of everything below node that may be mutated, outside in."""
    for field, value in ast.iter_fields(node):
        if field in IDLE:
            continue
        for i, below in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if field == "kw_defaults" and node.kwonlyargs[i].arg not in read(ancestors[0]):
                continue                                    # the default of an option that it never reads is idle
            if isinstance(below, KINDS) and not is_text(below):
                if hasattr(below, "lineno"):
                    yield node, field, i, ancestors
                if not isinstance(below, ast.Raise | ast.JoinedStr) and number(below) is None:
                    yield from places(below, (node, *ancestors))


def first_line(node):
    return ast.unparse(node).partition("\n")[0]


def child(parent, field, i):
    return getattr(parent, field) if i is None else getattr(parent, field)[i]


def put(parent, field, i, node):
    if i is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[i] = node


def is_text(node):
    """A docstring, or an assertion: neither computes anything."""
    return isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def number(node):
    """The value of a literal number, its sign included, else None."""
    match node:
        case ast.UnaryOp(ast.USub(), ast.Constant(value)):
            return -value
        case ast.Constant(bool()):
            return None
        case ast.Constant(int() | float() as value):
            return value


def telling(node):
    """Does the text of this node alone tell the reader, and survivors.toml, what was changed?"""
    return isinstance(node, ast.expr | ast.keyword | ast.stmt) and number(node) is None and not isinstance(
        node, ast.Name | ast.Constant | ast.Tuple)


def replacements(node, ancestors) -> Iterator[Any]:
    match node:
        case _ if number(node) is not None:
            yield from map(ast.Constant, other_numbers(number(node)))
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(str()) if looked_up(ancestors):
            yield ast.Constant("something else")
        case ast.BinOp(left, operation, right):
            yield from (ast.BinOp(left, instead(), right) for instead in INSTEAD.get(type(operation), []))
            if not isinstance(operation, ast.MatMult | ast.Mod):
                yield left
            if isinstance(operation, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr):
                yield right
            if isinstance(operation, ast.Sub):
                yield ast.UnaryOp(ast.USub(), right)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Compare(left, [comparison], [right]):
            yield from (ast.Compare(left, [instead()], [right]) for instead in INSTEAD.get(type(comparison), []))
        case ast.BoolOp(_, values):
            yield from values
        case ast.IfExp(_, yes, no):
            yield from (yes, no)
        case ast.Call(function) if not isinstance(ancestors[0], ast.Expr):                  # that is lost altogether
            yield from other_calls(node, ast.unparse(function).rpartition(".")[2])
        case ast.Name("max" | "min" as name):
            yield ast.Name(RENAME[name])
        case ast.Attribute(value, name):
            if name == "T":
                yield value
            if name in RENAME:
                yield ast.Attribute(value, RENAME[name], ast.Load())
        case ast.List([_, _, *_] as items):
            yield from (ast.List(swapped) for swapped in swaps(items))
        case ast.stmt():
            yield from other_statements(node, ancestors)


def other_numbers(value):
    if isinstance(value, float):
        yield 2 * value or 1.0
        if value < 0:
            yield -value
    else:
        yield from (value + 1, value - 1)


def looked_up(ancestors):
    """Is a string here compared or used as a key?  Others are messages."""
    parent = ancestors[1] if isinstance(ancestors[0], ast.Tuple) else ancestors[0]
    return isinstance(parent, ast.Compare | ast.Subscript | ast.Dict) or (
        isinstance(parent, ast.Call) and ast.unparse(parent.func).endswith(".get"))


def other_calls(call, name):
    arguments, keywords = call.args, call.keywords
    for i, keyword in enumerate(keywords):
        if keyword.arg not in (None, "keepdims"):                        # keepdims=False is among the mutants already
            yield ast.Call(call.func, arguments, keywords[:i] + keywords[i + 1:])
    if name == "get":
        yield from arguments[1:]
    elif isinstance(call.func, ast.Attribute) and not is_module(call.func.value):
        yield call.func.value                                            # x.reshape(...) → x
    elif name == "where" and len(arguments) == 3:
        condition, yes, no = arguments
        yield from (ast.Call(call.func, [condition, no, yes], []), yes, no)
    elif name not in PLUMBING and arguments and not isinstance(arguments[0], ast.Starred):
        yield from arguments if name in ("max", "min", "maximum", "minimum") else arguments[:1]


def is_module(node):
    """np, or np.linalg"""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in MODULES


def other_statements(node, ancestors):
    match node:
        case ast.Expr(ast.Call(ast.Attribute(ast.Attribute(_, "add"), "at"), [array, where, value])):
            yield ast.Pass()
            yield ast.AugAssign(ast.Subscript(array, where, ast.Store()), ast.Add(), value)     # loses repeated indices
        case ast.Expr() | ast.Raise():
            yield ast.Pass()
        case ast.AugAssign(target, operation, value):
            yield ast.Pass()
            yield ast.Assign([target], value)
            yield from (ast.AugAssign(target, instead(), value) for instead in INSTEAD.get(type(operation), []))
        case ast.Assign([ast.Tuple(targets)], ast.Tuple(values) as value) if len(targets) == len(values):
            yield from (ast.Assign(node.targets, ast.Tuple(swapped)) for swapped in swaps(values))
        case ast.Assign([ast.Name(name)], value) if name in names(value):
            yield ast.Pass()
        case ast.If(_, body, otherwise):
            yield from (ast.If(ast.Constant(always), body, otherwise) for always in (True, False))
        case ast.Return(ast.Tuple(gradients)) if GIVES_GRADIENTS.search(around(ancestors).name):
            yield from map(ast.Return, other_gradients(gradients))
        case ast.Return(ast.Tuple([ast.Tuple(outputs), saved])):
            yield from (ast.Return(ast.Tuple([ast.Tuple(swapped), saved])) for swapped in swaps(outputs))


def other_gradients(gradients):
    yield from map(ast.Tuple, swaps(gradients))
    for i, gradient in enumerate(gradients):
        if not isinstance(gradient, ast.Constant):
            for lost in (ast.Constant(None), ast.BinOp(gradient, ast.Mult(), ast.Constant(0))):
                yield ast.Tuple([*gradients[:i], lost, *gradients[i + 1:]])


def around(ancestors):
    """The innermost function around a statement."""
    return next(a for a in ancestors if isinstance(a, ast.FunctionDef | ast.AsyncFunctionDef))


def swaps(items):
    for i, (a, b) in enumerate(pairwise(items)):
        yield [*items[:i], b, a, *items[i + 2:]]


def names(node):
    return {below.id for below in ast.walk(node) if isinstance(below, ast.Name)}


def read(definition):
    body = definition.body
    return set().union(*map(names, body if isinstance(body, list) else [body]))


def ignored_options(definition):
    """One more bug for each option that the function reads: it reads the default instead."""
    arguments = definition.args
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if argument.arg in read(definition):
            mutated = copy.deepcopy(definition)
            mutated.body.insert(0, ast.Assign([ast.Name(argument.arg, ast.Store())], default))
            yield (argument.lineno, definition.name, first_line(definition), argument.arg,
                   f"always {ast.unparse(default)}", ast.unparse(ast.fix_missing_locations(mutated)))
