"""Parameters: a tree of dicts and lists whose leaves are views into one flat vector.

The optimizer, the gradient norm, a checkpoint and another rank see one array; the model sees names.  The order of
the leaves is the tree's own, so what init() puts side by side lies side by side in the vector.
"""
import contextlib
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

from pyllama import backend
from pyllama.errors import UserError


class _Places(NamedTuple):
    """Where gradients go: see adding()."""
    of_leaf: dict[int, np.ndarray]                      # by the id of the leaf
    transposed: dict[int, dict[tuple, np.ndarray]]      # by the id of the array whose memory it is, and the layout


_places: ContextVar[_Places | None] = ContextVar("where gradients go", default=None)


def leaves(tree, path=""):
    """Yield (dotted name, array): "model.layers.0.mlp.up_proj.weight", ..."""
    if isinstance(tree, dict | list):
        for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(branch, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def chosen(tree, paths):
    """The names of the leaves at these dotted paths or below them, a set; UserError if there is none at one of them."""
    names = [name for name, _ in leaves(tree)]
    below = {path: {name for name in names if f"{name}.".startswith(f"{path}.")} for path in paths}
    for path, found in below.items():
        if not found:
            raise UserError(f"there is no parameter at {path!r}; they are such as {names[0]} and {names[-1]}")
    return set().union(*below.values())


def rebuild(tree, arrays):
    """A tree of tree's form over the next of the iterator `arrays`, taken in the order of leaves()."""
    if isinstance(tree, dict):
        return {key: rebuild(branch, arrays) for key, branch in tree.items()}
    if isinstance(tree, list):
        return [rebuild(branch, arrays) for branch in tree]
    return next(arrays)


def cast(x, dtype):
    """x.astype(dtype), without warnings; by a kernel, with the same bits but for those a NaN carries, if there is one.
    """
    kernels = backend.of([x if x.dtype == np.float32 else np.empty(0, dtype)])
    with np.errstate(over="ignore", invalid="ignore"):
        return kernels.cast(x, dtype) if hasattr(kernels, "cast") else x.astype(dtype)


def named(tree, arrays):
    """A tree of tree's form from a mapping of dotted names to arrays, each cast to the dtype of tree's leaf.

    Raises UserError naming what is missing, what is left over, or what has another shape.
    """
    wanted = dict(leaves(tree))
    if wrong := sorted(wanted.keys() ^ arrays.keys()):
        raise UserError(f"the weights and the configuration differ: {wrong[0]} is only in the "
                        f"{'configuration' if wrong[0] in wanted else 'weights'} ({len(wrong)} such names); "
                        f"give the config.json that belongs to the weights")
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape:
            raise UserError(f"{name} has shape {arrays[name].shape} in the weights but {leaf.shape} by the "
                            f"configuration; give the config.json that belongs to the weights")
    return rebuild(tree, (cast(arrays[name], leaf.dtype) for name, leaf in wanted.items()))


def over(flat, tree):
    """The tree again, its leaves views into flat, end to end."""
    sizes = [a.size for _, a in leaves(tree)]
    ends = np.cumsum(sizes, dtype=int)
    if flat.shape != (sum(sizes),):
        raise ValueError(f"the vector has shape {flat.shape}, the tree holds {sum(sizes)} numbers")
    return rebuild(tree, (flat[end - a.size:end].reshape(a.shape)
                          for end, (_, a) in zip(ends, leaves(tree), strict=True)))


def flatten(tree):
    """(flat, views): the leaves copied into one new vector, and the tree over it."""
    flat = np.concatenate([a.ravel() for _, a in leaves(tree)])
    return flat, over(flat, tree)


def add(total, tree):
    """total += tree, leaf by leaf and by name; the order of tree's keys does not matter.

    One zero in the place of a larger leaf says that it has been added before: see adding().
    """
    sums, addends = dict(leaves(total)), dict(leaves(tree))
    added = {name for name, a in addends.items() if name in sums and _is_left(a, sums[name])}
    shapes = {name: sums[name].shape if name in added else np.shape(a) for name, a in addends.items()}
    if differing := {(name, a.shape) for name, a in sums.items()} ^ set(shapes.items()):
        raise ValueError(f"the trees differ in {sorted(differing)}")
    for name, a in sums.items():
        if name not in added:
            a += addends[name]


# --- gradients that are added where they are made ---------------------------------------------------------------------

@contextlib.contextmanager
def adding(p, grads):
    """Within this context the gradients of p's leaves are added to those of `grads` where they are made.

    A backward pass returns one zero in their place, what is left to add: so a step's gradient exists once, and a kernel
    adds to it while it computes.  Only for gradients that go into the sum as they are.

    An op that reads a leaf finds the place of its gradient, and one that reads a matrix's `.T` finds it transposed.
    What it does not find, such as some rows of a table, is left to the tree's sum: add().
    """
    known = _Places({}, {})
    for (_, leaf), (_, place) in zip(leaves(p), leaves(grads), strict=True):
        known.of_leaf[id(leaf)] = place
        if leaf.ndim == 2:
            known.transposed.setdefault(id(leaf.T.base), {})[_layout(leaf.T)] = place.T
    token = _places.set(known)
    try:
        yield
    finally:
        _places.reset(token)


def places(inputs):
    """{number of the input: where its gradient is added}, of an op's inputs."""
    known = _places.get()
    if known is None:
        return {}
    of_leaf, transposed = known
    places = {}
    for i, x in enumerate(inputs):
        place = of_leaf.get(id(x))
        if place is None and (layouts := transposed.get(id(x.base))):   # every .T is another object
            place = layouts.get(_layout(x))
        if place is not None:
            places[i] = place
    return places


def gather(places, grads):
    """Add to each place the gradient of its input, unless a kernel has and so returns the place itself; the gradients,
    with a zero instead of each that was added.

    The zero is a NumPy number of the gradient's precision: a model may transpose it, give it an axis or add to it.
    """
    grads = list(grads)
    for i, place in places.items():
        if grads[i] is not place:
            place += grads[i]
        grads[i] = place.dtype.type(0)
    return tuple(grads)


def _layout(x):
    """Where an array begins, its shape and strides: equal for two views of the same numbers in the same order."""
    begin = x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x.data.ptr
    return begin, x.shape, x.strides


def _is_left(a, place):
    """Is this the zero of gather(), or a view of it?"""
    return isinstance(a, np.generic | np.ndarray) and a.size == 1 and a.shape != place.shape and not a.any()
