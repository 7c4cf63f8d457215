"""The shape language in which an op declares its inputs and outputs, and the checks of what it takes and returns.

    x[... D], w[D] -> y[... D]

Shapes     x[... D] has any leading axes, then D;  a[2*K] is an axis of length 2K;  ids[B T]<V holds integers below V;
           b[E]? is optional (optional inputs come last);  -> s[... D], y[... D] are two outputs;  y[] is a number.
           B|1 is an axis of length B or 1, to broadcast;  mask[B T? S] has the shape [B T S] or [B S].  Commas may
           separate axes: x[N, D].
Axes       B batch, T query time, S key time, D model, E output, H query heads, G key/value heads,
           R = H/G query heads per key/value head, K head width, P = K/2 rotary pairs, F hidden, V vocabulary,
           L layers, N rows.
"""
import math
import re
from typing import NamedTuple

import numpy as np


class Array(NamedTuple):
    """One input or output of a shape line."""
    name: str
    axes: tuple[str, ...]                           # ("...", "2*K")
    below: str                                      # the bound of an integer input: an axis, a number, or ""
    optional: bool
    weight: bool = False                            # is its gradient a sum over many rows?

    def __str__(self):
        return f"{self.name}[{' '.join(self.axes)}]"


ARRAY = re.compile(r"\s*([^\W\d]\w*)\s*\[([^\[\]]*)\](?:\s*<\s*(\w+))?(\?)?\s*")
AXIS = re.compile(r"\.\.\.|\w+(?:\*\w+)*(?:\|1|\?)?")                 # ..., a letter, a number, a product of these, ...


def parse(line):
    """(inputs, outputs) of a shape line.  Raises ValueError if it is not one."""
    sides = line.split("->")
    if len(sides) != 2:
        raise wrong(line, f"it has {len(sides) - 1} arrows")
    inputs, outputs = (arrays(side, line) for side in sides)
    optional = [x.optional for x in inputs]
    if optional != sorted(optional) or any(y.optional for y in outputs):
        raise wrong(line, "only the last inputs may be optional")
    if len(names := [x.name for x in (*inputs, *outputs)]) > len(set(names)):
        raise wrong(line, f"{max(names, key=names.count)} occurs twice")
    return inputs, outputs


def with_weights(inputs, names, line):
    """The inputs; those with these names are weights.  Raises ValueError for a name that no floating input has."""
    if unknown := [name for name in names if name not in {x.name for x in inputs if not x.below}]:
        raise ValueError(f"weights names {unknown[0]!r}, not a floating input of {line!r}; name those that are")
    return [x._replace(weight=x.name in names) for x in inputs]


def arrays(side, line):
    """Parse one side of a shape line: its inputs or its outputs."""
    parsed = []
    for text in re.split(r",(?![^\[]*\])", side):                          # commas, but for those between brackets
        match = ARRAY.fullmatch(text)
        if not match:
            raise wrong(line, f"{text.strip()!r} is not a name with its axes in brackets")
        name, axes, below, optional = match.groups(default="")
        axes = tuple(axes.replace(",", " ").split())
        if odd := [axis for axis in axes if not AXIS.fullmatch(axis)]:
            raise wrong(line, f"{odd[0]!r} in {text.strip()!r} is not an axis")
        if axes.count("...") > 1:
            raise wrong(line, f"{text.strip()!r} has '...' twice")
        parsed.append(Array(name, axes, below, bool(optional)))
    return parsed


def wrong(line, reason):
    return ValueError(f"{line!r} is not a shape line: {reason}; write one such as 'x[... D], w[D] -> y[... D]'")


def signature(inputs):
    """The (shape, dtype) of each array, or None for None, as a tuple: hashable."""
    return tuple([None if x is None else (x.shape, x.dtype) for x in inputs])


ONE, BFLOAT16, MIXED = "one precision", "bfloat16", "bfloat16 and float32"        # of the inputs of a call


def is_bfloat16(dtype):
    """Is it ml_dtypes' bfloat16?  Its kind is "V", not "f"."""
    return dtype is not None and dtype.char == "E"


def check(op, actual):
    """Raise TypeError or ValueError unless inputs with the signature `actual` fit the op's shape line.

    The first floating input decides the precision: all have the same, but beside bfloat16 there may be float32.
    Returns ONE; BFLOAT16 if only vectors of weights are float32, such as a bias; MIXED if others are.
    """
    name = op.name
    required = sum(not declared.optional for declared in op.inputs)
    if not required <= len(actual) <= len(op.inputs):
        raise TypeError(f"{name} takes {op.shapes.split('->')[0].strip()}; got {len(actual)} inputs")
    sizes = {}
    precision, mixed = None, False
    for declared, given in zip(op.inputs, actual, strict=False):
        if given is None and declared.optional:
            continue
        if given is None:
            raise TypeError(f"{name}: {declared.name} is None; pass an array, because it is not optional")
        shape, dtype = given
        whole = dtype.kind in "iu" or (dtype.kind == "b" and declared.below in ("", "2"))      # True is not a token id
        if whole != bool(declared.below):
            kind = "integer" if declared.below else "floating"
            raise TypeError(f"{name}: {declared.name} must be {kind}, not {dtype}")
        if not declared.below:
            precision = precision or (declared.name, real(dtype))
            if real(dtype) not in beside(precision[1]):
                raise TypeError(f"{name}: {declared.name} is {dtype} but {precision[0]} is {precision[1]}; "
                                f"convert one, because mixed precision is not promoted")
            mixed |= dtype != precision[1] and not is_vector(declared)
        if not fits(declared.axes, shape, sizes):
            raise ValueError(f"{name}: {declared.name} has shape {shape}, which does not fit {declared}"
                             + (f" with {sizes}" if sizes else ""))
    if precision is None or not is_bfloat16(precision[1]):
        return ONE
    return MIXED if mixed else BFLOAT16


def is_vector(declared):
    """Is the input a norm's weight or a bias?"""
    return declared.weight and len(declared.axes) == 1


def beside(precision):
    """The precisions that inputs may have beside a first one of this precision."""
    return (precision, np.float32) if is_bfloat16(precision) else (precision,)


def check_outputs(op, result):
    """(y, saved, the signature of y) from what forward returned.  Raises TypeError unless it is y, saved."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], tuple | list)):
        raise TypeError(f"{op.name}: forward returned {described(result)}; return y, saved, where saved is the tuple "
                        f"of what backward needs")
    ys = op.each(result[0])
    try:
        known = signature(ys)
    except AttributeError:
        known = (None,)
    if None in known:
        output, y = next((x, y) for x, y in zip(op.outputs, ys, strict=True)
                         if not (hasattr(y, "shape") and hasattr(y, "dtype")))
        raise TypeError(f"{op.name}: {output} is {described(y)}; return an array, such as np.asarray(y)")
    return *result, known


def check_gradients(op, grads, count):
    """The first gradients that backward returned.  Raises TypeError unless there are at least `count`."""
    if isinstance(grads, tuple | list) and len(grads) >= count:
        return grads[:count]
    raise TypeError(f"{op.name}: backward returned {described(grads)} for {count} inputs; return a tuple with one "
                    f"gradient for each, None for integers")


def described(result):
    """The kind of result, in a few words."""
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {len(result)}"
    return "None" if result is None else f"one {type(result).__name__}"


def check_dy(op, output, dy, shape, dtype):
    """Raise ValueError or TypeError unless dy fits an output of this shape and dtype; a 0-d one accepts any number."""
    name, y = op.name, output.name
    if np.shape(dy) != shape:
        raise ValueError(f"{name}: d{y} has shape {np.shape(dy)}, {y} has {shape}")
    if shape and dy.dtype != dtype and real(dy.dtype) != real(dtype):
        raise TypeError(f"{name}: d{y} is {dy.dtype} but {y} is {dtype}; convert one")


def real(dtype):
    """The precision of a dtype's real part."""
    return dtype.type(0).real.dtype


def fits(axes, shape, sizes):
    """Does the shape match these axes?  Sizes of axes that `sizes` lacks are added to it.

    A product such as H*K fits any length until one of its sizes is known.
    """
    if "..." in axes:
        i, leading = axes.index("..."), len(shape) - len(axes) + 1
        if leading < 0 or sizes.setdefault("...", shape[i:i + leading]) != shape[i:i + leading]:
            return False
        axes, shape = axes[:i] + axes[i + 1:], shape[:i] + shape[i + leading:]
    if len(axes) > len(shape):
        axes = tuple(axis for axis in axes if not axis.endswith("?"))
    if len(axes) != len(shape):
        return False
    for axis, n in zip(axes, shape, strict=True):
        axis = axis.removesuffix("?")
        if axis.endswith("|1") and n == 1:
            continue
        axis = axis.removesuffix("|1")
        factors = [int(f) if f.isdigit() else sizes.get(f, f) for f in axis.split("*")]
        product = math.prod(f for f in factors if isinstance(f, int))
        unknown = [f for f in factors if isinstance(f, str)]
        if (n % product != 0) if unknown and product else n != product:
            return False
        if len(unknown) == 1:
            sizes[unknown[0]] = n // product if product else 0
    return True


def require_below(ids, bound, what="token id"):
    """Raise IndexError if an id lies outside 0 .. bound-1; the message names the first one.

    ids      an integer array of any shape
    what     what the message calls an id

    NumPy itself would let negative ids count from the end.

    >>> import numpy as np
    >>> from pyllama.shapes import require_below
    >>> require_below(np.array([3, 7]), 5)
    Traceback (most recent call last):
    IndexError: token id 7 is outside the vocabulary of 5 (0 to 4)
    """
    if ids.dtype.kind not in "iu":
        raise TypeError(f"a {what} must be an integer, not {ids.dtype}; convert the ids")
    wrong = ids[(ids < 0) | (ids >= bound)]
    if wrong.size:
        raise IndexError(f"{what} {int(wrong[0])} is outside the vocabulary of {bound} (0 to {bound - 1})")
