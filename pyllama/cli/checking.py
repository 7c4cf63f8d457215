"""The commands check, verify and export-vectors: gradients, kernels of others, and numbers to test them with."""
import ast
from pathlib import Path
from typing import Any, Literal

from pyllama import backend
from pyllama.cli.inspect import chosen
from pyllama.errors import UserError, counted
from pyllama.files import export, to_json
from pyllama.formats.safetensors import to_safetensors
from pyllama.op import Op
from pyllama.testing import check as check_op
from pyllama.testing.named import find, is_named
from pyllama.testing.vectors import golden


def check(names: tuple[str, ...] = (), /, all: bool = False, problems: int = 50, seed: int = 0,
          on: Literal["numpy", "cpu"] | None = None) -> int:
    """Check backward passes against the exact derivative of the forward pass.

    Prints the largest error of each op, as a share of its tolerance, and the input it belongs to.  The exit code is 1
    if a gradient is wrong.

    Args:
        names: ops to check (default: all)
        all: check all ops
        problems: random problems for each op
        seed: seed of the problems
        on: check only this backend (default: every backend of the op)
    """
    if on and on not in backend.available():
        raise UserError(f"the backend {on!r} is not available: {backend.why_no_cpu}")
    if problems < 1:
        raise UserError(f"problems is {problems}; it must be at least 1")
    checked = chosen(() if all else names)
    if on and names and not all and (lacking := [op.name for op in checked if on not in op.backends()]):
        raise UserError(f"{lacking[0]} has no {on} kernel to check; remove --on {on}")
    if not backend.cpu:
        print(f"no C kernels: {backend.why_no_cpu}")
    worst = 0.0
    failed = False
    print(f"{'op':22}{'backend':9}{'error':9}largest for")
    for op in checked:
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
    print(f"largest error {worst:.1e} of what rounding and differences explain")
    return 1 if failed else 0


def verify(function: str, /, op: str, backward: str | None = None, saved: bool = False,
           dtype: Literal["float32", "float64"] | None = None, problems: int = 20, seed: int | None = None,
           arrays: Literal["numpy", "torch", "jax"] = "numpy", rename: tuple[str, ...] = (),
           fix: tuple[str, ...] = (), only_wrong: bool = False, json: Path | None = None) -> int:
    """Compare somebody else's kernel with one of our ops, and print the smallest call at which it is wrong.

    Values, gradients, sizes across block edges, empty and grouped shapes, options, memory layouts, dtypes and aliasing
    are tried on random calls of the op's shape line.  The exit code is 1 if one of them is wrong.

    The function takes the op's inputs by position and its options by keyword.  It returns y, back; or y, with
    --backward; or y, saved, with --backward and --saved.

    Args:
        function: module:function or file.py:function
        op: op to compare with
        backward: its backward pass, module:function, called with dy and the inputs
        saved: the function returns y, saved; its backward pass is called with dy and what is in saved
        dtype: precision, if it is for one only (default: both)
        problems: random calls for each property
        seed: seed of the calls (default: a new one, which is printed)
        arrays: what the function takes; the gradients of torch and jax functions are those of the library
        rename: options and optional inputs that have another name in the function, such as eps=epsilon
        fix: options with a fixed value, such as eps=1e-6
        only_wrong: print only what is wrong
        json: file for the result as JSON
    """
    from pyllama.testing.verify import verify as compare

    if problems < 1:
        raise UserError(f"problems is {problems}; it must be at least 1")
    values = {name: literal(name, value) for name, value in pairs("fix", fix).items()}
    theirs, back = find(function), find(backward) if backward else None
    try:
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
