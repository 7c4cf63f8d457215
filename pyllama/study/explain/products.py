"""The local products that an entry of a gradient is the sum of, with their numbers.

    dx_nd = Σ_e dy_ne w_ed              from the formula in the op's docstring: see formulas.py
    dx_i  = Σ_j dy_j ∂y_j/∂x_i          other ops: ∂y_j/∂x_i by a complex step through the op's reference

The factors are computed in float64 from the recorded arrays, so their sum has the rounding of the recorded precision.
"""
import numpy as np

from pyllama.study.explain.formulas import FORMULAS, Cells, Group, Products, double, indices
from pyllama.study.explain.recording import Call

STEP = 1e-30                                    # of the complex step: it is exact, because nothing is subtracted
AT_ONCE = 64                                    # cells: their products with all words of a vocabulary stay small


def products(call: Call, k: int) -> Products:
    """The products of call.grads[k].

    >>> import numpy as np
    >>> from pyllama.ops import linear
    >>> from pyllama.study.explain.products import products
    >>> from pyllama.study.explain.recording import record
    >>> def loss(p):
    ...     y, back = linear(np.array([[1.0, 2.0]]), p["w"])
    ...     return y.sum(), lambda: {"w": back(np.ones_like(y))[1]}
    >>> call, = record(loss, {"w": np.array([[3.0, 4.0]])}).calls
    >>> found = products(call, 1)
    >>> found.groups[0].left, found.groups[0].right
    ('dy[{j0},{0}]', 'x[{j0},{1}]')
    >>> found.factors((np.array([0]), np.array([1])))
    (array([[1.]]), array([[2.]]))
    """
    formula = FORMULAS.get((call.op.name, call.op.inputs[k].name))
    return formula(call) if formula else by_complex_step(call, k)


def largest(call: Call, k: int, cells: Cells, most: int) -> list[list[tuple[int, float, float]]]:
    """For each cell the `most` largest products that are not 0, as (number, left, right)."""
    found, listed = products(call, k), []
    for start in range(0, len(cells[0]), AT_ONCE):
        left, right = found.factors(tuple(index[start:start + AT_ONCE] for index in cells))
        sizes = np.abs(left * right)
        order = np.argsort(-sizes, axis=1, kind="stable")[:, :most]
        listed += [[(int(j), float(left[i, j]), float(right[i, j])) for j in row if sizes[i, j]]
                   for i, row in enumerate(order)]
    return listed


def by_complex_step(call: Call, k: int) -> Products:
    """∂y_j/∂x_i = Im y_j(x + i h e_i) / h, of the op's reference.

    Where all outputs share the leading axes "..." of the input, only the outputs of its own row depend on a cell, and
    the rows of several cells are computed together.
    """
    op, name = call.op, call.op.inputs[k].name
    leads = all(x.axes[:1] == ("...",) for x in (op.inputs[k], *op.outputs))
    own = len(op.inputs[k].axes) - 1 if leads else call.inputs[k].ndim
    lead = call.inputs[k].shape[:call.inputs[k].ndim - own]
    cell = indices(len(lead)) + indices(own, len(lead))
    groups = []
    for output, y in zip(op.outputs, call.outputs, strict=True):
        j = (indices(len(lead)) + indices(y.ndim - len(lead), letter="j")).rstrip(",")
        at = f"[{j}]" if j else ""
        groups.append(Group(f"d{output.name}{at}", f"∂{output.name}{at}/∂{name}[{cell.rstrip(',')}]",
                            np.shape(y)[len(lead):]))
    dys = [double(dy) for dy in call.dys]

    def each_row(cells):
        count, place = len(cells[0]), cells[:len(lead)]
        inputs = [x if x is None or declared.axes[:1] != ("...",) else x[place]
                  for declared, x in zip(op.inputs, call.inputs, strict=False)]
        derivative = stepped(call, k, inputs, (np.arange(count), *cells[len(lead):]), count)
        return np.concatenate([dy[place].reshape(count, -1) for dy in dys], axis=1), derivative

    def each_call(cells):
        count = len(cells[0])
        derivative = [stepped(call, k, call.inputs, tuple(index[i] for index in cells), 1)[0] for i in range(count)]
        left = np.concatenate([dy.reshape(-1) for dy in dys])
        return np.broadcast_to(left, (count, len(left))), np.array(derivative)

    return Products("complex step", groups, each_row if leads else each_call)


def stepped(call: Call, k: int, inputs, place, count: int) -> np.ndarray:
    """The derivative of all outputs [count, numbers] by a step in inputs[k][place]."""
    inputs = [double(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs]
    inputs[k] = inputs[k].astype(complex)
    inputs[k][place] += 1j * STEP
    y, _ = call.op.forward(*inputs, **call.options)
    return np.concatenate([np.asarray(one).imag.reshape(count, -1) / STEP for one in call.op.each(y)], axis=1)
