"""Parameters: a tree of dicts and lists whose leaves are views into one flat vector.

The optimizer, the gradient norm and another rank see one array; the model sees names.  The leaves lie in the vector in
the order of the tree.  The vector may hold some leaves alone, those that train: the others are frozen.
"""
import contextlib
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

from pyllama import backend
from pyllama.errors import UserError

NONE = np.float32(0)            # in place of a gradient that nobody wants, such as that of a frozen leaf


class _Places(NamedTuple):
    """Where gradients are added: see adding()."""
    of_leaf: dict[int, np.ndarray]                      # id of the leaf -> array, or NONE
    transposed: dict[int, dict[tuple, np.ndarray]]      # id of the leaf's base -> layout -> array, or NONE
    ahead: bool                                         # may forward passes add to them?


_places: ContextVar[_Places | None] = ContextVar("where gradients are added", default=None)


def leaves(tree, path=""):
    """Yield (dotted name, array) for each leaf in the order of the tree, such as "model.layers.0.mlp.up_proj.weight".

    >>> from pyllama.params import leaves
    >>> list(leaves({"norm": {"weight": 1.0}, "layers": [2.0, 3.0]}))
    [('norm.weight', 1.0), ('layers.0', 2.0), ('layers.1', 3.0)]
    """
    if isinstance(tree, dict | list):
        for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(branch, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def size(tree):
    """The number of entries of all leaves."""
    return sum(a.size for _, a in leaves(tree))


def chosen(tree, paths):
    """The names of the leaves at or below these dotted paths, a set.  Raises UserError for a path without leaves."""
    names = [name for name, _ in leaves(tree)]
    below = {path: {name for name in names if f"{name}.".startswith(f"{path}.")} for path in paths}
    for path, matches in below.items():
        if not matches:
            raise UserError(f"there is no parameter at {path!r}; give names such as {names[0]} or {names[-1]}")
    return set().union(*below.values())


def rebuild(tree, arrays):
    """A tree of the same structure, whose leaves are taken from the iterator `arrays` in the order of leaves()."""
    if isinstance(tree, dict):
        return {key: rebuild(branch, arrays) for key, branch in tree.items()}
    if isinstance(tree, list):
        return [rebuild(branch, arrays) for branch in tree]
    return next(arrays)


def cast(x, dtype):
    """x.astype(dtype) without warnings, by a kernel if there is one; the bits of a NaN may differ from NumPy's."""
    kernels = backend.kernels_for([x if x.dtype == np.float32 else np.empty(0, dtype)])
    with np.errstate(over="ignore", invalid="ignore"):
        return kernels.cast(x, dtype) if hasattr(kernels, "cast") else x.astype(dtype)


def named(tree, arrays, copy=True, keep=lambda name, a: a):
    """A tree of the same structure from a mapping of dotted names to arrays, each cast to the dtype of its leaf.

    copy    False: keep an array that has this dtype already, if it is writable and occurs once
    keep    keep(name, array) is called for one array after the other and returns the leaf

    Raises UserError if a name is missing or unknown, or an array has another shape than its leaf.
    """
    template = dict(leaves(tree))
    if wrong := sorted(template.keys() ^ arrays.keys()):
        raise UserError(f"the weights and the configuration differ: {wrong[0]} is only in the "
                        f"{'configuration' if wrong[0] in template else 'weights'} ({len(wrong)} such names); "
                        f"give the config.json that belongs to the weights")
    for name, leaf in template.items():
        if arrays[name].shape != leaf.shape:
            raise UserError(f"{name} has shape {arrays[name].shape} in the weights but {leaf.shape} by the "
                            f"configuration; give the config.json that belongs to the weights")
    used: set[int] = set()

    def own(a, dtype):
        keep = not copy and a.dtype == dtype and a.flags.c_contiguous and a.flags.writeable and id(a) not in used
        used.add(id(a))
        return a if keep else cast(a, dtype)

    return rebuild(tree, (keep(name, own(arrays[name], leaf.dtype)) for name, leaf in template.items()))


def over(flat, tree, names=None):
    """A tree of the same structure, whose leaves are views into flat [N], end to end.

    names   of the leaves that flat holds; None: all.  The others are those of the tree itself.

    Raises ValueError unless N is the number of entries of these leaves.
    """
    held = [names is None or name in names for name, _ in leaves(tree)]
    ends = np.cumsum([a.size * h for (_, a), h in zip(leaves(tree), held, strict=True)], dtype=int)
    if flat.shape != (total := sum(ends[-1:]),):
        raise ValueError(f"the vector has shape {flat.shape}, the tree holds {total} numbers")
    return rebuild(tree, (flat[end - a.size:end].reshape(a.shape) if h else a
                          for end, h, (_, a) in zip(ends, held, leaves(tree), strict=True)))


def flatten(tree, names=None):
    """Copy leaves into one new vector: (flat [N], a tree of views into it).  These leaves have one dtype.

    names   of these leaves; None: all.  The others are in the new tree as they are, not copied.
    """
    flat = np.concatenate([a.ravel() for name, a in leaves(tree) if names is None or name in names])
    return flat, over(flat, tree, names)


def gradients(flat, tree, names):
    """over(flat, tree, names) for the gradients of a tree, with NONE for each leaf that flat does not hold."""
    return over(flat, rebuild(tree, (a if name in names else NONE for name, a in leaves(tree))), names)


def add(total, tree):
    """total += tree, leaf by leaf and by name; the order of tree's keys does not matter.

    A single zero in place of a larger leaf means that its gradient has been added already: see adding().  Where total
    has NONE, nothing is added, and tree may lack the leaf.  Raises ValueError if the names or the shapes differ
    otherwise.
    """
    addends = dict(leaves(tree))
    sums = {name: a for name, a in leaves(total) if a is not NONE or name in addends}
    added = {name for name, a in addends.items() if name in sums and _is_left(a, sums[name])}
    shapes = {name: sums[name].shape if name in added else np.shape(a) for name, a in addends.items()}
    if differing := {(name, a.shape) for name, a in sums.items()} ^ set(shapes.items()):
        raise ValueError(f"the trees differ in {sorted(differing)}")
    for name, a in sums.items():
        if name not in added:
            a += addends[name]


# --- gradients that are added while they are computed -----------------------------------------------------------------

@contextlib.contextmanager
def adding(p, grads, ahead=False):
    """Let backward passes within this context add the gradients of p's leaves to the leaves of `grads`.

    The gradient of a step then exists once, and a kernel may add to it while it computes.  In place of a gradient that
    has been added, a backward pass returns a single zero.  Use it only for gradients that are summed unchanged.

    Op recognizes a leaf, and the `.T` of a matrix, among its inputs.  The gradients of other views, such as some rows
    of a table, are returned as usual and added by add().

    A leaf whose place is NONE is frozen: its gradient is not computed if the op can leave it out, and dropped if not.

    ahead   True: a forward pass that computes a gradient, as that of linear_cross_entropy, adds it to its place at
            once.  Each forward pass must then be followed by one backward pass, with a gradient of 1: it frees what
            the op has saved for it.
    """
    places = _Places({}, {}, ahead)
    for (_, leaf), (_, place) in zip(leaves(p), leaves(grads), strict=True):
        if not hasattr(leaf, "dtype"):                                  # encoded: no op takes it
            continue
        places.of_leaf[id(leaf)] = place
        if leaf.ndim == 2:
            turned = NONE if place is NONE else place.T
            places.transposed.setdefault(id(leaf.T.base), {})[_layout(leaf.T)] = turned
    token = _places.set(places)
    try:
        yield
    finally:
        _places.reset(token)


def places(inputs):
    """{i: the array to which the gradient of inputs[i] is added, or NONE}, for the inputs that adding() covers."""
    current = _places.get()
    if current is None:
        return {}
    places = {}
    for i, x in enumerate(inputs):
        place = current.of_leaf.get(id(x))
        if place is None and x is not None and x.base is not None and (layouts := current.transposed.get(id(x.base))):
            place = layouts.get(_layout(x))                             # every .T is another object
        if place is not None:
            places[i] = place
    return places


def may_add_ahead():
    """May a forward pass add a gradient to its place, because one backward pass follows?  See adding()."""
    current = _places.get()
    return current is not None and current.ahead


def gather(places, grads):
    """Add the gradient of input i to places[i], unless a kernel has done so and returned places[i] itself.

    None in place of a gradient means that it has been added already.  A gradient whose place is NONE is dropped.
    Returns the gradients, with a zero for each that was added or dropped.  The zero is a NumPy scalar of the place's
    precision: a model may transpose it, give it an axis or add to it.
    """
    grads = list(grads)
    for i, place in places.items():
        if place is not NONE and grads[i] is not None and grads[i] is not place:
            place += grads[i]
        grads[i] = place.dtype.type(0)
    return tuple(grads)


def _layout(x):
    """(address, shape, strides) of an array: equal for two views of the same entries in the same order."""
    begin = x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x.data.ptr
    return begin, x.shape, x.strides


def _is_left(a, place):
    """Is a gather()'s zero, or a view of one, or what nobody wants?"""
    if place is NONE:
        return True
    return isinstance(a, np.generic | np.ndarray) and a.size == 1 and a.shape != place.shape and not a.any()
