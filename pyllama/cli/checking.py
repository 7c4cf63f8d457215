"""The commands check, verify and export-vectors: gradients, kernels of others, and numbers to test them with."""
import ast
import dataclasses
from pathlib import Path
from typing import Any, Literal

from pyllama import backend
from pyllama.cli.inspect import chosen
from pyllama.cli.output import complain, quoted
from pyllama.errors import UserError, counted
from pyllama.files import export, to_json
from pyllama.formats.safetensors import to_safetensors
from pyllama.op import Op
from pyllama.testing import Report, gradcheck
from pyllama.testing import check as check_op
from pyllama.testing.named import cause, find, found_in, is_named, not_ending
from pyllama.testing.shaped import check_shapes, inputs_beside, line_beside
from pyllama.testing.vectors import golden


def check(names: tuple[str, ...] = (), /, all: bool = False, problems: int = 50, seed: int | None = None,
          on: Literal["numpy", "cpu"] | None = None, shapes: str | None = None, backward: str | None = None,
          saved: bool = False, budget: float | None = 2.0, only_wrong: bool = False, json: Path | None = None) -> int:
    """Check backward passes against the exact derivative of the forward pass: of ops, and of your own functions.

    Of an op, a line has its largest error, as a share of the tolerance, and the input it belongs to.  A function is
    module:function or file.py:function and returns y, back; or y, with --backward; or y, saved, with --backward and
    --saved.  Its inputs are drawn from the shape line that --shapes gives, that is a line of its docstring, or its
    attribute `shapes`; else they are the `inputs` of its module, a list or a function that returns one.  The exit code
    is 1 if a gradient is wrong.

    In a shape line ids[N] < V are integers below V, b[E]? may be None, x[B|1 D] has a first axis of B or 1, q[H*K] one
    of H times K; docs/testing.md explains the rest.

    Args:
        names: ops, or module:function, or file.py:function (default: all ops)
        all: check all ops
        problems: random problems for each op or function
        seed: seed of the problems (default: 0 for ops; for a function a new one, which is printed)
        on: check only this backend of the ops (default: every backend of the op)
        shapes: shape line of the function, such as "x[... D], w[D] -> y[... D]"
        backward: backward pass of the function, module:function, called with dy and the inputs
        saved: the function returns y, saved; its backward pass is called with dy and what is in saved
        budget: seconds for a function; None for no limit
        only_wrong: print only the gradients of a function that are wrong
        json: file for the reports of functions as JSON
    """
    if on and on not in backend.available():
        raise UserError(f"the backend {on!r} is not available: {backend.why_no_cpu}")
    require_sound(problems, seed, json)
    if budget is not None and not budget > 0:
        raise UserError(f"budget is {budget:g}; give a positive number of seconds, or None for no limit")
    named = [(name, *found_in(name)) for name in names if is_named(name)]
    functions = [(name, module, f) for name, module, f in named if not isinstance(f, Op)]
    settings = {"shapes": shapes, "backward": backward, "saved": saved, "only_wrong": only_wrong, "json": json}
    if not functions and (flags := [flag for flag, value in settings.items() if value]):
        raise UserError(f"--{flags[0]} is for functions; name one, such as mymodule:function or file.py:function")
    if saved and not backward:
        raise UserError("--saved belongs to --backward, which is not given; name the function that takes saved")
    if len(functions) > 1 and (flags := [flag for flag in ("shapes", "backward") if settings[flag]]):
        raise UserError(f"--{flags[0]} is for one function, but {len(functions)} are named; check them one by one")
    registered = tuple(name for name in names if not is_named(name))
    ops = [*(chosen(registered) if registered else ()), *(f for _, _, f in named if isinstance(f, Op))]
    if all or not names:
        ops = chosen(())
    elif on and (lacking := [op.name for op in ops if on not in op.backends()]):
        raise UserError(f"{lacking[0]} has no {on} kernel to check; remove --on {on}")
    right = check_ops(ops, problems, seed or 0, on) if ops else True
    reports, refused = [], False
    for name, module, f in functions:
        try:
            with not_ending(name):
                reports.append(checked(name, module, f, shapes, backward, saved, problems, seed, budget))
        except UserError as error:
            if len(names) == 1:
                raise
            complain(str(error))
            refused = True
            continue
        right &= bool(reports[-1])
        print(reports[-1].text(only_wrong))
    if json:
        export(json, [f"[{', '.join(report.to_json() for report in reports)}]\n".encode()])
    return 2 if refused else 0 if right else 1


def require_sound(problems: int, seed: int | None, json: Path | None) -> None:
    """Raise UserError for a number that cannot be, and for a file that cannot be written, before anything is run."""
    if problems < 1:
        raise UserError(f"problems is {problems}; it must be at least 1")
    if seed is not None and seed < 0:
        raise UserError(f"seed is {seed}; it must be at least 0")
    if json and json.is_dir():
        raise UserError(f"--json is {json}, a folder; name a file")
    if json and not json.parent.is_dir():
        raise UserError(f"the folder {json.parent} of --json does not exist; create it, or name another file")


def check_ops(ops: list[Op], problems: int, seed: int, on: str | None) -> bool:
    """Print a line for each op and backend.  Are all right?"""
    if not backend.cpu:
        print(f"no C kernels: {backend.why_no_cpu}")
    worst = 0.0
    failed = False
    print(f"{'op':22}{'backend':9}{'error':9}largest for")
    for op in ops:
        for name in [on] if on in op.backends() else [] if on else op.backends():
            print(f"{op.name:22}{name:9}", end="")
            try:
                with backend.use(name):
                    report = check_op(op, seed, problems)
            except (TypeError, ValueError) as error:                            # not even a gradient
                failed = True
                print(error)
                continue
            failed |= not report
            worst = max(worst, report.error)
            wrong = [fault.sentence for fault in report.faults] or ["" if report else "is wrong"]
            where = report.pairs[-1].input if report.pairs else ""
            print(f"{report.error:<9.1e}{where} {wrong[0]}".rstrip())
    print("a gradient is wrong" if failed else
          f"all gradients are right: the largest error is {worst:.1e} of what rounding and differences explain")
    return not failed


def checked(name: str, module: Any, function: Any, line: str | None, backward: str | None, saved: bool, problems: int,
            seed: int | None, budget: float | None) -> Report:
    """The report of a function.  Raises UserError if it has neither a shape line nor inputs, and for wrong use."""
    if not callable(function):
        raise UserError(f"{name} is not a function; name a function of {module.__name__}")
    back = find(backward) if backward else None
    try:
        chosen_line = line or line_beside(function)
    except ValueError as error:
        raise UserError(f"{name} cannot be checked: {error}") from None
    inputs = None if chosen_line else inputs_beside(module)
    if not chosen_line and inputs is None:
        raise UserError(f"{name} does not say what its inputs are; give --shapes \"x[... D], w[D] -> y[... D]\", write "
                        f"such a line into its docstring, or write inputs = [...] into {module.__name__}")
    try:
        report = check_shapes(function, chosen_line, backward=back, saved=saved, problems=problems, seed=seed,
                              budget=budget) if chosen_line else \
            gradcheck(function, inputs, backward=back, saved=saved, seed=seed, budget=budget, raise_exception=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be checked: {error}") from error
    except Exception as error:                                                  # of the function itself
        raise UserError(f"{name} raised {cause(error)}; fix that, or give inputs that it is defined for") from error
    flags = [("shapes", line), ("backward", backward), ("problems", problems if problems != 50 else None)]
    words = [name, *(f"--{flag}={value}" for flag, value in flags if value), *["--saved"] * saved]
    replay = f"pyllama check {' '.join(map(quoted, words))} --seed {report.seed} --budget None"
    return dataclasses.replace(report, replay=replay)


def verify(function: str, /, op: str, backward: str | None = None, saved: bool = False,
           dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = None, problems: int = 20,
           seed: int | None = None, arrays: Literal["numpy", "torch", "jax"] = "numpy", rename: tuple[str, ...] = (),
           fix: tuple[str, ...] = (), only_wrong: bool = False, json: Path | None = None) -> int:
    """Compare somebody else's kernel with one of our ops, and print the smallest call at which it is wrong.

    Values, gradients, sizes across block edges, empty and grouped shapes, options, memory layouts, dtypes, aliasing and
    large and tiny inputs are tried on random calls of the op's shape line.  The exit code is 1 if one of them is wrong.

    The function takes the op's inputs by position and its options by keyword.  It returns y, back; or y, with
    --backward; or y, saved, with --backward and --saved.

    Args:
        function: module:function or file.py:function
        op: op to compare with
        backward: its backward pass, module:function, called with dy and the inputs
        saved: the function returns y, saved; its backward pass is called with dy and what is in saved
        dtype: precision, if it is for one only (default: float64 and float32)
        problems: random calls for each property
        seed: seed of the calls (default: a new one, which is printed)
        arrays: what the function takes; the gradients of torch and jax functions are those of the library
        rename: options and optional inputs that have another name in the function, such as eps=epsilon
        fix: options with a fixed value, such as eps=1e-6
        only_wrong: print only what is wrong
        json: file for the result as JSON
    """
    from pyllama.testing.verify import verify as compare

    require_sound(problems, seed, json)
    values = {name: literal(name, value) for name, value in pairs("fix", fix).items()}
    theirs, back = find(function), find(backward) if backward else None
    try:
        with not_ending(function):
            found = compare(theirs, op_named(op), back, saved=saved, dtype=dtype, problems=problems, seed=seed,
                            rename=pairs("rename", rename), fix=values, arrays=arrays, name=function,
                            backward_name=backward or "")
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    print(found.text(only_wrong))
    if json:
        export(json, [f"{found.to_json()}\n".encode()])
    return 0 if found else 1


def op_named(name: str) -> Op:
    """The registered op, or the one at module:name.  Raises UserError."""
    if not is_named(name):
        return chosen((name,))[0]
    op = find(name)
    if not isinstance(op, Op):
        raise UserError(f"{name} is not an op; name one of pyllama, or one that pyllama.op.op() made")
    return op


def pairs(flag: str, words: tuple[str, ...]) -> dict[str, str]:
    """{name: value} of words such as name=value.  Raises UserError."""
    for word in words:
        if not all(word.partition("=")):
            raise UserError(f"--{flag} is {word!r}; write NAME=VALUE")
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def literal(name: str, value: str) -> Any:
    """The value as Python reads it.  Raises UserError."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise UserError(f"--fix {name} is {value!r}; write a number, True, None or a string in quotes") from None


def export_vectors(folder: Path, /, op: tuple[str, ...] = (), count: int = 10, seed: int = 0) -> int:
    """Write golden cases of ops, with which kernels in any language can be tested.

    A case has inputs, options, dy, outputs, gradients and what the forward pass saves.  An op has two files of tensors,
    NAME.float64.safetensors and NAME.float32.safetensors; index.json lists the cases and the tolerance of each result.

    Args:
        folder: folder for the files
        op: ops to export (default: all)
        count: cases in each file
        seed: seed of the cases; the same seed gives the same files
    """
    if count < 1:
        raise UserError(f"count is {count}; it must be at least 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; it must be at least 0")
    exported = chosen(op)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file; name a folder") from None
    index: dict[str, Any] = {"version": 1, "seed": seed, "ops": {}}
    for one in exported:
        files = {}
        for dtype in ("float64", "float32"):
            name = f"{one.name}.{dtype}.safetensors"
            tensors, cases = golden(one, dtype, count, seed)
            export(folder / name, to_safetensors(tensors))
            files[dtype] = {"file": name, "cases": cases}
        index["ops"][one.name] = {"shapes": one.shapes, "files": files}
    export(folder / "index.json", [to_json(index)])
    print(f"wrote {counted(count, 'case')} of {counted(len(index['ops']), 'op')} in float64 and float32 to {folder}")
    return 0
