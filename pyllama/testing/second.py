"""Derivatives of order one and two: check_grads with JAX's arguments, gradgradcheck with torch's.

A backward pass is a function, too: (inputs, dy) -> dx.  If its own backward pass is known, gradcheck judges that: torch
and JAX know it; for a backward pass by hand, backward2= gives it.

Without one, something can still be said.  dx is the gradient of the number <dy, y>, so that the Jacobian of dx is the
Hessian of that number, which is symmetric.  For any directions u of one input and v of another

    <u, d dx_i / d x_j  v> = <v, d dx_j / d x_i  u>

and both sides are slopes of back.  A dx that is the gradient of anything passes, such as 2 dx.
"""
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from pyllama.testing import foreign, passes, trees
from pyllama.testing.calls import Function, as_list, brought, described, name_of, refuse_backward
from pyllama.testing.function import gradcheck, require_time, seed_or_new
from pyllama.testing.methods import slopes
from pyllama.testing.methods.compare import direction
from pyllama.testing.report import GradcheckError, Method, Pair, Report, Verdict
from pyllama.testing.trees import copies, in_precision, is_float

ATTEMPTS = 10                               # the inputs, and neighbors of these if there is a kink
ASIDE = 1e-2                                # how far those are, relative to the inputs
SURE = 4                                    # bounds of independent errors, added in quadrature
NO_TOLERANCES = "eps, atol and rtol do not apply to the symmetry of the Hessian, whose tolerance is derived"
SYMMETRY = ("second order: the Hessian was checked for symmetry, no more, because no backward pass of the backward "
            "pass is known; give backward2=")


def gradgradcheck(func: Callable, inputs: Any, grad_outputs: Any = None, *, eps: float | None = None,
                  atol: float | None = None, rtol: float | None = None, raise_exception: bool = True,
                  nondet_tol: float = 0.0, fast_mode: bool = False, backward: Callable | None = None,
                  saved: bool = False, backward2: Callable | None = None, seed: int | None = None,
                  budget: float | None = 2.0, names: Sequence[str] | None = None) -> Report:
    """Check the derivative of a backward pass: is the backward pass of the backward pass right?

    func            as for gradcheck; a function of torch or JAX needs no more
    grad_outputs    dy, in the form of y; default: random
    backward2       for a backward pass by hand, which is a function of (dy, *inputs): called as
                    backward2(ddx, dy, *inputs), it returns the gradients of dy and of each input, None for integers.
                    ddx is the upstream gradient of dx: an array or a tree like the input, a tuple for several inputs
    others          as for gradcheck

    Returns a Report.  Without backward2 and for functions of NumPy arrays it says whether the Hessian of <dy, y> is
    symmetric, and notes that no more was checked.

    Raises GradcheckError if something is wrong, unless raise_exception is False; TypeError or ValueError for wrong use.

    >>> import numpy as np
    >>> from pyllama.testing import gradgradcheck
    >>> def cube(x):
    ...     return x ** 3, lambda dy: 3 * x ** 2 * dy
    >>> def backward2(ddx, dy, x):
    ...     return 3 * x ** 2 * ddx, 6 * x * dy * ddx
    >>> bool(gradgradcheck(cube, [np.array([1.0, -2.0])], backward2=backward2))
    True
    """
    seed = seed_or_new(seed)
    require_time(budget)
    if backward2 is not None and not callable(backward2):
        raise TypeError(f"backward2 is {described(backward2)}; give a function")
    options = {"eps": eps, "atol": atol, "rtol": rtol, "nondet_tol": nondet_tol, "fast_mode": fast_mode,
               "seed": seed, "budget": budget, "raise_exception": False}
    inputs = as_list(inputs)
    if module := foreign.library(func, inputs):
        refuse_backward(func, backward or backward2)
        report = of_library(module, func, inputs, grad_outputs, names, options)
    else:
        function = brought(func, inputs, backward, saved, None, names)
        if backward2:
            report = of_backward(function, backward2, grad_outputs, options)
        else:
            report = symmetric(function, grad_outputs, seed)
            unused = [NO_TOLERANCES] if not eps is atol is rtol is None else []
            report = replace(report, notes=(*report.notes, *unused))
    report = replace(report, replay=f"gradgradcheck({name_of(func)}, inputs, ..., seed={seed})")
    return settled(report, raise_exception)


def check_grads(f: Callable, args: Any = None, order: int = 2, modes: Sequence[str] = ("fwd", "rev"),
                atol: float | None = None, rtol: float | None = None, eps: float | None = None, *,
                backward: Callable | None = None, saved: bool = False, jvp: Callable | None = None,
                backward2: Callable | None = None, raise_exception: bool = True, seed: int | None = None,
                budget: float | None = 2.0, names: Sequence[str] | None = None) -> Any:
    """Check derivatives of order one, and of order two if `order` is 2, in forward mode, reverse mode or both.

    f           as for gradcheck: a function of torch or JAX, or one that returns y, back
    args        its inputs; without them the result is a function of the inputs, as in autograd: check_grads(f)(x, w)
    modes       "rev": the gradients; "fwd": the Jacobian times a vector, which torch and JAX know, or jvp= gives.  At
                order two, JAX's forward mode is differentiated again, too; torch's cannot be
    backward2   the backward pass of a backward pass by hand; see gradgradcheck
    others      as for gradcheck

    Returns a Report of all orders and modes: the pairs of the second order have "(order 2)" behind the input's name.

    Raises GradcheckError if something is wrong, unless raise_exception is False; TypeError or ValueError for wrong use.

    >>> import numpy as np
    >>> from pyllama.testing import check_grads
    >>> def cube(x):
    ...     return x ** 3, lambda dy: 3 * x ** 2 * dy
    >>> report = check_grads(cube, (np.array([1.0, -2.0]),), order=2, modes=["rev"])
    >>> bool(report)
    True
    """
    if args is None:
        def check(*inputs):
            return check_grads(f, inputs, order, modes, atol, rtol, eps, backward=backward, saved=saved, jvp=jvp,
                               backward2=backward2, raise_exception=raise_exception, seed=seed, budget=budget,
                               names=names)

        return check
    require_wanted(order, modes)
    inputs = as_list(args)
    seed = seed_or_new(seed)
    require_time(budget)
    options = {"eps": eps, "atol": atol, "rtol": rtol, "seed": seed, "budget": budget, "raise_exception": False}
    module = foreign.library(f, inputs)
    function = brought(f, inputs, backward, saved, jvp, names)
    if "rev" in modes:
        report = reverse(function, f, inputs, modes, options | {"backward": backward, "saved": saved, "names": names})
    else:
        report = forward(function, options)
    reports = [report]
    if order == 2:
        reports.append(renamed(gradgradcheck(f, inputs, backward=backward, saved=saved, backward2=backward2,
                                             names=names, **options)))                  # type: ignore[arg-type]
        if hasattr(module, "tangent_of") and function.jvp and "fwd" in modes:
            reports.append(renamed(of_tangent(module, f, inputs, names, options)))
    again = f"check_grads({function.name}, inputs, order={order}, modes={[*modes]}, ..., seed={seed})"
    return settled(replace(merged(reports), replay=again), raise_exception)


def require_wanted(order: int, modes: Sequence[str]) -> None:
    if order not in (1, 2):
        raise ValueError(f"order is {order!r}; give 1 or 2")
    if isinstance(modes, str) or not modes or not {*modes} <= {"fwd", "rev"}:
        raise ValueError(f"modes is {modes!r}; give a list of 'fwd' and 'rev'")


# --- order one --------------------------------------------------------------------------------------------------------

def reverse(function: Function, f: Callable, inputs: list, modes: Sequence[str], options: dict) -> Report:
    """The report of reverse mode.  Where forward mode is wanted, too, the dot product of gradcheck ties it to this."""
    if "fwd" in modes and function.jvp:
        return gradcheck(f, inputs, jvp=function.jvp, **options)
    if "fwd" in modes:
        report = gradcheck(f, inputs, **options)
        return replace(report, notes=(*report.notes, "forward mode was left out: no jvp is known; give jvp="))
    if adapted := foreign.adapted(f, inputs):                       # its forward mode is not wanted
        names = options.pop("names") or adapted.names
        report = gradcheck(adapted.f, adapted.inputs, names=names, **options)
        return replace(report, function=function.name, notes=(*report.notes, *adapted.notes))
    return gradcheck(f, inputs, **options)


def forward(function: Function, options: dict) -> Report:
    """The report of forward mode, by a gradient that is made of it: (Jᵀ dy)[i] = <dy, J e_i>."""
    if not function.jvp:
        raise TypeError(f"{function.name} has no forward mode; give jvp=, or modes=['rev']")

    def f(*leaves):
        outputs, _ = function(list(leaves))
        single = len(outputs) == 1

        def slope(place, index, dys):
            tangents = [np.zeros_like(x) for x in leaves]
            tangents[place][index] = 1
            moved = function.tangents(list(leaves), tangents, outputs)
            return sum(np.sum(d * m) for d, m in zip(dys, moved, strict=True))

        def back(dy):
            dys = (dy,) if single else dy
            return tuple(np.array([slope(place, index, dys) for index in np.ndindex(x.shape)], x.dtype).reshape(x.shape)
                         if is_float(x) else None for place, x in enumerate(leaves))

        return (outputs[0] if single else outputs), back

    report = gradcheck(f, function.leaves, names=function.names, **options)
    return replace(report, function=function.name)


# --- order two --------------------------------------------------------------------------------------------------------

def of_library(module: Any, func: Callable, inputs: list, grad_outputs: Any, names: Any, options: dict) -> Report:
    """gradcheck of the backward pass that torch or JAX has, as a function of inputs and dy."""
    function, floats, leaf_names = parted(module, func, inputs)
    ys = function(*floats)
    rng = np.random.default_rng(options["seed"])
    dys = random_like(module, ys, rng) if grad_outputs is None else unmarked(module, grad_outputs)
    known = [*(names or leaf_names), *numbered("dy", len(dys))]
    report = gradcheck(module.gradient_of(function, len(floats)), [*floats, *dys], names=known, **options)
    return replace(report, function=name_of(func))


def parted(module: Any, func: Callable, inputs: list) -> tuple[Callable, list, list[str]]:
    """func as a function of its differentiated arrays; these, none of which is marked for a gradient; their names."""
    function, floats, names = module.differentiable(func, inputs)
    return function, unmarked(module, floats), names


def unmarked(module: Any, tree: Any) -> list:
    """The arrays of a tree, none of which is marked for a gradient: torch would check the marked ones alone."""
    return [module.from_numpy(module.to_numpy(x)) for _, x in trees.leaves(tree)]


def of_tangent(module: Any, func: Callable, inputs: list, names: Any, options: dict) -> Report:
    """gradcheck of forward mode, as a function of inputs and their tangents."""
    function, floats, leaf_names = parted(module, func, inputs)
    tangents = random_like(module, floats, np.random.default_rng(options["seed"]))
    known = [*(names or leaf_names), *(f"tangent of {name}" for name in names or leaf_names)]
    return gradcheck(module.tangent_of(function, len(floats)), [*floats, *tangents], names=known, **options)


def random_like(module: Any, arrays: Sequence[Any], rng: np.random.Generator) -> list:
    """Random arrays of the library, of the shapes and dtypes of these."""
    values = [module.to_numpy(x) for x in arrays]
    return [module.from_numpy(np.asarray(rng.standard_normal(x.shape)).astype(x.dtype)) for x in values]


def of_backward(function: Function, backward2: Callable, grad_outputs: Any, options: dict) -> Report:
    """gradcheck of a backward pass by hand, as a function of dy and the inputs, whose own backward is backward2."""
    outputs, _ = function(function.leaves)
    rng = np.random.default_rng(options["seed"])
    dys = dys_of(outputs, grad_outputs, rng)
    count = len(dys)

    def backward(*dys_and_leaves):
        leaves = list(dys_and_leaves[count:])
        grads = function(leaves)[1](tuple(dys_and_leaves[:count]))

        def back(ddx):
            each = iter(ddx if isinstance(ddx, tuple) else (ddx,))
            per_leaf = iter([None if g is None else next(each) for g in grads])
            ddxs = tuple(trees.rebuild(tree, per_leaf) for tree in function.inputs)
            result = backward2(ddxs[0] if len(ddxs) == 1 else ddxs,
                               dys_and_leaves[0] if count == 1 else tuple(dys_and_leaves[:count]),
                               *function.arguments(leaves))
            if not isinstance(result, tuple | list):
                raise TypeError(f"backward2 returned {described(result)}; return a tuple of the gradients of dy and of "
                                f"each input")
            ddy, *rest = result
            return (*([ddy] if count == 1 else ddy), *(x for tree in rest for _, x in trees.leaves(tree)))

        floating = tuple(np.asarray(g) for g in grads if g is not None)
        return (floating[0] if len(floating) == 1 else floating), back

    report = gradcheck(backward, [*dys, *function.leaves], names=[*numbered("dy", count), *function.names], **options)
    return replace(report, function=f"backward of {function.name}")


def dys_of(outputs: tuple, grad_outputs: Any, rng: np.random.Generator) -> list[np.ndarray]:
    """dy for each output: those given, or random ones that are 0 where the output is infinite."""
    if grad_outputs is None:
        drawn = [np.where(np.isfinite(y), rng.standard_normal(y.shape), 0.0) for y in outputs]
        return [np.asarray(dy).astype(y.dtype) for dy, y in zip(drawn, outputs, strict=True)]
    dys = [np.asarray(dy) for _, dy in trees.leaves(grad_outputs)]
    shapes, wanted = [dy.shape for dy in dys], [y.shape for y in outputs]
    if shapes != wanted:
        raise ValueError(f"grad_outputs has the shapes {shapes}, the outputs have {wanted}; give one of each shape")
    return dys


def numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {i}" for i in range(count)]


# --- the symmetry of the Hessian --------------------------------------------------------------------------------------

def symmetric(function: Function, grad_outputs: Any, seed: int) -> Report:
    """Is the Jacobian of back symmetric?  For each two inputs, along two random directions."""
    rng, faults = np.random.default_rng(seed), passes.Faults()
    start, _ = in_precision(function, function.leaves)
    if not any(map(is_float, start)):
        raise TypeError("no input is floating, so there is no gradient to check; convert one, such as x.astype(float)")
    outputs, back = passes.forward(function, start, faults)
    dys = dys_of(outputs, grad_outputs, rng)
    precisions = frozenset(x.dtype for x in function.leaves if is_float(x))                 # type: ignore[union-attr]
    grads = passes.gradients(function, back, tuple(dys), outputs, start, precisions, faults)
    known = [place for place, dx in enumerate(grads) if dx is not None]
    pairs = []
    for i, j in combinations_with_replacement(known, 2):
        leaves = start
        for _ in range(ATTEMPTS):
            verdict = exchanged(function, leaves, dys, (i, j), rng)
            if verdict.status != "undecided":
                break
            leaves = [np.asarray(x + ASIDE * direction(x, rng)).astype(x.dtype) if is_float(x) else x for x in start]
        pairs.append(Pair(function.names[j], f"gradient of {function.names[i]}", (verdict,)))
    pairs.sort(key=lambda pair: (pair.wrong, pair.worst.severity))
    return Report(function.name, tuple(pairs), tuple(faults.values()), (SYMMETRY, *function.notes), seed=seed)


def exchanged(function: Function, leaves: list, dys: list, places: tuple[int, int],
              rng: np.random.Generator) -> Verdict:
    """Compare <u, H_ij v> with <v, H_ji u>."""
    i, j = places
    u, v = direction(leaves[i], rng), direction(leaves[j], rng)
    with np.errstate(all="ignore"):
        first = slopes.slopes(gradient_along(function, leaves, dys, i, j, v), np.finfo(leaves[i].dtype).eps)
        second = slopes.slopes(gradient_along(function, leaves, dys, j, i, u), np.finfo(leaves[j].dtype).eps)
        a, b = u.ravel() * first.value, v.ravel() * second.value
        off = [np.abs(w.ravel()) * slope.error for w, slope in ((u, first), (v, second))]
        size = np.abs(a).sum() + np.abs(b).sum()
        tolerance = SURE * float(np.sqrt(sum((e ** 2).sum() for e in off))) + slopes.EXACT * size
        claimed, measured = float(a.sum()), float(b.sum())
    error = abs(claimed - measured)
    if (first.kink & (u.ravel() != 0)).any() or (second.kink & (v.ravel() != 0)).any() or not np.isfinite(tolerance):
        return Verdict("differences", "undecided", why="back has a kink or a jump here")
    wrong = not error <= tolerance
    method: Method = "complex step" if first.holomorphic and second.holomorphic else "differences"
    sides = f"|<u, H v> {claimed:.9g} - <v, H u> {measured:.9g}| = {error:.2g}"
    return Verdict(method, "wrong" if wrong else "passed", claimed, measured, error, tolerance,
                   f"{sides} {'>' if wrong else '<='} {tolerance:.1e}: the Hessian is "
                   f"{'not ' if wrong else ''}symmetric")


def gradient_along(function: Function, leaves: list, dys: list, of: int, moved: int, v: np.ndarray) -> Callable:
    """along(t): the gradient of leaf `of` [M] when leaf `moved` is moved by t v; NaN where f refuses a real t."""
    def along(t):
        here = copies(leaves)
        dtype = leaves[moved].dtype
        step = np.asarray(t * v)
        here[moved] = np.asarray(leaves[moved] + step, np.result_type(dtype, np.complex64) if step.dtype.kind == "c"
                                 else dtype)
        try:
            _, back = function(here)
            return np.ravel(back(tuple(np.array(d) for d in dys))[of])
        except Exception:
            if isinstance(t, complex):
                raise
            return np.full(leaves[of].size, np.nan)

    return along


# --- reports ----------------------------------------------------------------------------------------------------------

def renamed(report: Report) -> Report:
    """The report with "(order 2)" behind the name of each input."""
    return replace(report, pairs=tuple(replace(pair, input=f"{pair.input} (order 2)") for pair in report.pairs))


def merged(reports: list[Report]) -> Report:
    """One report of all, the worst pair last."""
    first = reports[0]
    pairs = sorted((pair for report in reports for pair in report.pairs),
                   key=lambda pair: (pair.wrong, pair.worst.severity))
    return replace(first, pairs=tuple(pairs), faults=tuple(f for report in reports for f in report.faults),
                   notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
                   skipped=tuple(dict.fromkeys(name for report in reports for name in report.skipped)),
                   case=next((report.case for report in reports if report.case), ""))


def settled(report: Report, raise_exception: bool) -> Report:
    if raise_exception and not report:
        raise GradcheckError(report)
    return report
