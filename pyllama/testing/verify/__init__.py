"""Is somebody else's kernel right?  Compare a function with one of our ops on random calls of its shape line.

    >>> import numpy as np
    >>> from pyllama.ops import tanh
    >>> from pyllama.testing.verify import verify
    >>> def mine(x):
    ...     y = np.tanh(x)
    ...     return y, lambda dy: dy * (1 - y)                   # 1 - y² is right
    >>> found = verify(mine, tanh, seed=0)
    >>> bool(found), found["values"].verdict, found["gradients"].verdict
    (False, 'right', 'wrong')

The properties, each tried on calls of its own:

    values          the outputs, on small arrays
    gradients       the gradients of random dy
    sizes           both, on axes across the edges of vectors and blocks: 8, 15, 17, 31, 64, ..., 1030; in float16 and
                    bfloat16 also 4096, which is too long for a sum in these
    empty           both, where an axis without entries is allowed
    groups          both, where several query heads share a key/value head
    options         both, with random values of the options
    layouts         both, on strided, transposed, sliced, reversed, broadcast, read-only and misaligned arrays
    dtypes          both, in float32 and float64, with ids of 32 and 64 bits; results have the precision of the inputs
    aliasing        inputs and dy stay as they are, results share no memory with inputs, calls share no state
    scales          both, on inputs about 1e-6, 1e-3, 30, 1e3 and 1e4 large, where the op is finite in float32

A number is wrong if it is further from the reference in float64 than tolerance.py derives for this call.  A function
may refuse what it does not support by a TypeError, ValueError or NotImplementedError, but not small ordinary arrays:
that is counted, and is not wrong.
"""
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from pyllama.op import PACKAGE, Op
from pyllama.testing.verify.adapter import Adapter, assigned
from pyllama.testing.verify.calls import RandomCalls
from pyllama.testing.verify.counterexample import Call, as_python, smallest
from pyllama.testing.verify.judging import OVERWRITTEN, Judge
from pyllama.testing.verify.result import Mistake, Property, Verification

ATTEMPTS = 500                                      # to make a counterexample smaller; no clock: a seed says all
DTYPES = ("float64", "float32", "float16", "bfloat16")
NO_GRADIENTS = "the function returns y alone; give its backward pass"
UNDEFINED = "the op is not defined for any of the random inputs"
NOT_TRIED = {"empty": "no axis may be empty", "groups": "the op has no grouped queries",
             "options": "the function takes no option of the op"}
MUST_ACCEPT = ("values", "gradients", "sizes")


def verify(function: Callable, op: Op, backward: Callable | None = None, *, saved: bool = False,
           dtype: str | None = None, problems: int = 20, seed: int | None = None,
           rename: Mapping[str, str] | None = None, fix: Mapping[str, Any] | None = None,
           arrays: str = "numpy", name: str = "", backward_name: str = "") -> Verification:
    """Compare a function with an op on random calls; see the module.

    function        takes the op's inputs by position and its options by keyword; see adapter.py for what it returns
    backward        backward(dy, *inputs, **options) -> gradients, if function returns y
    saved           function returns y, saved, and backward takes these instead of the inputs
    dtype           "float64", "float32", "float16" or "bfloat16", if the function is for one precision only; None:
                    float64 and float32
    problems        calls for each property
    seed            of everything random; None: a new one, which the result has
    rename          {the op's name of an option or an optional input: the function's}
    fix             {option: its value}
    arrays          "torch" or "jax" for a function of their arrays, whose gradients the library has
    name            "module:function", for the counterexamples; "": that of the function

    Raises TypeError or ValueError, in one sentence, if the function cannot be called with the op's inputs.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype is {dtype!r}; it must be {', '.join(map(repr, DTYPES[:-1]))} or {DTYPES[-1]!r}")
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401                      # which gives NumPy this name
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    adapter = Adapter(function, op, backward, saved=saved, rename=rename, fix=fix, arrays=arrays)
    main = dtype or "float64"
    other = dtype or "float32"
    calls, judge = RandomCalls(adapter, main, other, np.random.default_rng(seed)), Judge(adapter)
    paste = partial(pasted, adapter, name or named(function), backward_name or named(backward))
    tried = {"values": (calls.small, judge.values), "gradients": (calls.small, judge.gradients),
             "sizes": (calls.sizes, judge.both), "empty": (calls.empty, judge.both),
             "groups": (calls.groups, judge.both), "options": (calls.options, judge.both),
             "layouts": (calls.layouts, judge.layouts), "dtypes": (calls.dtypes, judge.precision),
             "aliasing": (calls.small, judge.aliasing), "scales": (calls.scales, judge.scales)}
    properties = tuple(
        Property(title, note=NO_GRADIENTS) if title == "gradients" and not judge.gives_gradients(calls.small(0))
        else examined(title, draw, look, problems, paste) for title, (draw, look) in tried.items())
    return Verification(name or adapter.name, op.name, op.shapes, properties, tuple(adapter.not_passed()), seed)


def examined(title: str, draw: Callable, look: Callable, problems: int, paste: Callable) -> Property:
    """The property after some calls, or after the first mistake; calls that the reference cannot judge do not count."""
    judged, refused, note, share = 0, 0, "", 0.0
    for number in range(problems):
        call = draw(number)
        if call is None:
            return Property(title, note=NOT_TRIED[title])
        mistake, error = look(call)
        judged += error == error
        if mistake and mistake.refused and title not in MUST_ACCEPT:
            refused, note = refused + 1, note or mistake.sentence
        elif mistake:
            call, mistake = reduced(call, mistake, look)
            return Property(title, judged, refused, share, mistake, paste(call, mistake))
        elif error == error:
            share = max(share, error)
    return Property(title, judged, refused, share, note=note if judged else UNDEFINED)


def reduced(call: Call, mistake: Mistake, look: Callable) -> tuple[Call, Mistake]:
    """The smallest call found that is wrong in the same result, and what is wrong there."""
    tried = itertools.count()

    def fails(smaller):
        found = look(smaller)[0] if next(tried) < ATTEMPTS else None
        return found is not None and found.what == mistake.what and found.refused == mistake.refused

    call = smallest(fails, call) if ATTEMPTS else call
    return call, look(call)[0] or mistake


def pasted(adapter: Adapter, name: str, backward: str, call: Call, mistake: Mistake) -> str:
    """The call as Python: first the function's result, then the reference's."""
    op, arrays = adapter.op, {n: x for n, x, _ in call.named()}
    ours = op.module == f"{PACKAGE}{op.name}"
    reference, found = op.name if ours else f"OPS[{op.name!r}]", f"find({name!r})" if name else adapter.name
    imports = [f"from pyllama.ops import {op.name}" if ours else "from pyllama.op import OPS"]
    imports += ["from pyllama.testing.named import find"] if name or backward else []
    if adapter.arrays != "numpy":
        imports.append("from pyllama.testing.verify.adapter import Adapter")
        rename = f", rename={adapter.rename!r}" if adapter.rename else ""
        found = f"Adapter({found}, {reference}, arrays={adapter.arrays!r}{rename})"
    imports += ["", f"f = {found}" if name else f"f = {found}  # of your own"]
    imports += [f"backward = find({backward!r})"] if backward else []
    given = [x.name for x in op.inputs if arrays.get(x.name) is not None]
    names = [x.name if x.name in given else "None" for x in op.inputs]
    while names[-1] == "None":
        names.pop()
    dy = ", ".join(f"d{y.name}" for y in op.outputs)
    dy = f"({dy})" if call.outputs > 1 else dy
    forward, gradients = adapter.as_called(given, dy, call.options)
    if mistake.what in {y.name for y in op.outputs}:
        gradients = ""
    if mistake.what == "inputs":
        changed = ", ".join(n for n, x in arrays.items() if x is not None)
        return as_python(call, imports, [forward, *[gradients][:bool(gradients)], f"print({changed})"])
    if mistake.what == OVERWRITTEN:
        twice = ", ".join(f"2 * d{y.name}" for y in op.outputs)
        twice = adapter.as_called(given, f"({twice})" if call.outputs > 1 else twice, call.options)[1]
        return as_python(call, imports, [forward, f"grads = {gradients}", "print(grads)", twice, "print(grads)"])
    expected = f"{reference}({', '.join(names + assigned(call.options))})"
    return as_python(call, imports, [forward, f"print({gradients or 'y'})", f"y, back = {expected}",
                                     f"print(back({dy}))" if gradients else "print(y)"])


def named(function: Callable | None) -> str:
    """module:function, if the function can be found under that name; else ""."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    return f"{module}:{path}" if module not in (None, "__main__") and "<" not in path else ""
