"""An op: its shape line, its name, and what its functions may return."""
import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import op as op_module
from pyllama.errors import UserError
from pyllama.op import Op
from pyllama.shapes import fits


def double(x, *others, **options):
    return 2 * x, ()


def double_backward(dy, **options):
    return (2 * dy,)


for function in (double, double_backward):                  # as in a module of the package: kernels may run instead
    function.__module__ = "pyllama.ops.doubled"


def shaped(line):
    return Op(line, double, double_backward)


# --- shape lines ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("axes", "shape", "sizes"), [
    ("... D", (5,), {"...": (), "D": 5}),
    ("... D", (2, 3, 5), {"...": (2, 3), "D": 5}),
    ("... T 2*P", (7, 4, 6), {"...": (7,), "T": 4, "P": 3}),
    ("B 3", (2, 3), {"B": 2}),
    ("B B", (4, 4), {"B": 4}),
    ("B 2*B", (4, 8), {"B": 4}),
    ("H H*K", (4, 12), {"H": 4, "K": 3}),
    ("H H*K", (0, 0), {"H": 0, "K": 0}),
    ("T H*K", (4, 12), {"T": 4}),
    ("2*H*K H K", (12, 2, 3), {"H": 2, "K": 3}),
    ("N D", (0, 5), {"N": 0, "D": 5}),
    ("2*P", (0,), {"P": 0}),
    ("", (), {}),
])
def test_shapes_that_fit_tell_the_sizes(axes, shape, sizes):
    found = {}
    assert fits(tuple(axes.split()), shape, found)
    assert found == sizes


@pytest.mark.parametrize(("axes", "shape"), [
    ("... D", ()), ("N D", (5,)), ("N D", (2, 3, 5)), ("2*P", (5,)), ("B 3", (2, 4)), ("B B", (4, 5)),
    ("B 2*B", (4, 9)), ("B 2*B", (0, 8)), ("H H*K", (0, 5)), ("", (1,)), ("... T K", (3,)), ("A ... B", (5,)),
    ("2*H*K", (5,)),
])
def test_shapes_that_do_not_fit(axes, shape):
    assert not fits(tuple(axes.split()), shape, {})


@st.composite
def shape_lines(draw):
    """The axes of an input, and a shape made from drawn sizes."""
    sizes = {axis: draw(st.integers(0, 5)) for axis in "ABC"} | {"...": draw(st.lists(st.integers(0, 3), max_size=3))}
    axes = draw(st.lists(st.sampled_from(["A", "B", "C", "2*A", "3*B", "4"]), max_size=4))
    if draw(st.booleans()):
        axes.insert(draw(st.integers(0, len(axes))), "...")
    shape = []
    for axis in axes:
        number, _, letter = axis.rpartition("*")
        shape += sizes["..."] if axis == "..." else [4] if axis == "4" else [int(number or 1) * sizes[letter]]
    return tuple(axes), tuple(shape)


@given(line=shape_lines(), data=st.data())
def test_shapes_made_from_sizes_fit_and_others_do_not(line, data):
    """Twice the same axes: the second input must have the first one's sizes, every one of them and no more."""
    axes, shape = line
    sizes = {}
    assert fits(axes, shape, sizes)
    assert fits(axes, shape, sizes)
    wrong = list(shape)
    if wrong and data.draw(st.booleans()):
        wrong[data.draw(st.integers(0, len(wrong) - 1))] += data.draw(st.sampled_from([1, 2, 12]))
    else:
        wrong.insert(data.draw(st.integers(0, len(wrong))), data.draw(st.integers(1, 5)))
    assert not fits(axes, tuple(wrong), sizes)


def arrays(*shapes, dtype="float64"):
    return [np.zeros(shape, dtype) for shape in shapes]


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("inputs", "error", "message"), [
    (arrays((2, 3)), TypeError, "doubled takes x[... D], w[D], b[E]?; got 1 inputs"),
    (arrays((2, 3), 3, 4, 4), TypeError, "takes x[... D], w[D], b[E]?; got 4 inputs"),
    (arrays((2, 3), 4), ValueError, "w has shape (4,), which does not fit w[D] with {'...': (2,), 'D': 3}"),
    (arrays((), 4), ValueError, "x has shape (), which does not fit x[... D]"),
    ([np.zeros((2, 3), "int64"), np.zeros(3)], TypeError, "x must be floating, not int64"),
    ([np.zeros((2, 3), "float32"), np.zeros(3)], TypeError, "w is float64 but x is float32; convert one"),
    ([np.zeros((2, 3)), np.zeros(3), np.zeros(4, "complex64")], TypeError, "b is complex64 but x is float64"),
])
def test_a_call_that_does_not_fit_says_why(inputs, error, message):
    with pytest.raises(error) as refused:
        shaped("x[... D], w[D], b[E]? -> y[... D]")(*inputs)
    assert message in str(refused.value)


@pytest.mark.usefixtures("unregistered")
def test_calls_that_fit():
    """Complex stands for the real precision of its parts; bounded inputs are integers of any type, or truth values."""
    op = shaped("x[... D], w[D], ids[B]<V? -> y[... D]")
    assert [(wanted.name, wanted.below, wanted.optional) for wanted in op.inputs] == [
        ("x", "", False), ("w", "", False), ("ids", "V", True)]
    op(*arrays((3,), 3))
    op(np.zeros((0, 3), complex), np.zeros(3))
    for kind in ("int64", "uint16"):
        op(*arrays((2, 3), 3), np.zeros(4, kind))
    for kind in ("float64", "bool"):
        with pytest.raises(TypeError, match=f"ids must be integer, not {kind}"):
            op(*arrays((2, 3), 3), np.zeros(4, kind))
    shaped("x[B], mask[B]<2 -> y[B]")(np.zeros(3), np.ones(3, bool))


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("line", "inputs"), [
    ("x[N, D],w[D]->y[N,D]", [("N", "D"), ("D",)]), ("x[..., 2*K] -> y[]", [("...", "2*K")]),
])
def test_commas_may_separate_axes(line, inputs):
    assert [x.axes for x in shaped(line).inputs] == inputs


@pytest.mark.parametrize(("line", "reason"), [
    ("x -> y", "'x' is not a name with its axes in brackets"),
    ("x[N] y[N]", "it has 0 arrows"),
    ("x[N] -> y[N] -> z[N]", "it has 2 arrows"),
    ("x[...D] -> y[]", "'...D' in 'x[...D]' is not an axis"),
    ("x[N+1] -> y[]", "'N+1' in 'x[N+1]' is not an axis"),
    ("x[... N ...] -> y[]", "'x[... N ...]' has '...' twice"),
    ("x[N] w[D] -> y[]", "'x[N] w[D]' is not a name"),
    ("x[N], b[D]?, c[D] -> y[]", "only the last inputs may be optional"),
    ("x[N], x[D] -> y[]", "x occurs twice"),
    ("x[N] -> ", "'' is not a name"),
])
def test_a_line_of_another_form_is_refused_with_an_example(line, reason):
    with pytest.raises(ValueError, match="is not a shape line") as refused:
        shaped(line)
    assert reason in str(refused.value)
    assert "write one such as 'x[... D], w[D] -> y[... D]'" in str(refused.value)


# --- what Python and notebooks show -----------------------------------------------------------------------------------

@pytest.mark.usefixtures("unregistered")
def test_an_op_shows_its_shape_line_its_signature_and_its_source():
    op = Op("x[D] -> y[D]", quadruple, quadruple_backward, name="quadruple")
    assert repr(op) == "<op quadruple: x[D] -> y[D]>"
    assert str(inspect.signature(op)) == "(x)"
    assert inspect.getsource(op) == inspect.getsource(quadruple)
    assert inspect.getfile(op.forward) == __file__


# --- names ------------------------------------------------------------------------------------------------------------

def in_module(module, *functions):
    for function in functions:
        function.__module__ = module
    return functions


def quadruple(x):
    return 4 * x, ()


def quadruple_backward(dy):
    return (4 * dy,)


@pytest.mark.parametrize("module", ["softmax", "mine.ops.softmax", "pyllama_ops.cast", "__main__"])
def test_the_functions_of_a_user_run_whatever_the_module_is_called(unregistered, kernels, module):
    """A built-in op keeps its kernel and its name, whichever is registered first."""
    kernels.softmax = kernels.quadruple = kernels.cast = lambda x: (np.zeros_like(x), ())
    mine = Op("x[D] -> y[D]", *in_module(module, quadruple, quadruple_backward))
    own = Op("x[D] -> y[D]", *in_module("pyllama.ops.softmax", lambda x: (x, ()), lambda dy: (dy,)))
    assert mine.name == f"{module}.quadruple"
    assert {mine.name: mine, "softmax": own} == op_module.OPS
    y, back = mine(np.ones(2))
    assert (y.tolist(), back(y)[0].tolist()) == ([4, 4], [16, 16])
    assert own(np.ones(2))[0].tolist() == [0, 0]
    assert mine.backends() == ["numpy"]


def test_ops_of_one_script_have_different_names(unregistered):
    def made(factor):
        return Op("x[D] -> y[D]", *in_module("__main__", lambda x: (factor * x, ()), lambda dy: (factor * dy,)))

    first, second = made(2), made(3)
    assert len({first.name, second.name}) == 2
    assert list(op_module.OPS.values()) == [first, second]
    for _ in range(2):                                      # the same cell of a notebook runs twice
        again = Op("x[D] -> y[D]", quadruple, quadruple_backward)
    assert list(op_module.OPS.values()) == [first, second, again]


def test_a_name_that_another_module_has_taken_is_refused(unregistered):
    Op("x[D] -> y[D]", *in_module("pyllama.ops.softmax", lambda x: (x, ()), lambda dy: (dy,)))
    with pytest.raises(UserError, match=r"'softmax' of mine has the name of an op of pyllama.ops.softmax; give it ano"):
        Op("x[D] -> y[D]", *in_module("mine", quadruple, quadruple_backward), name="softmax")
    assert Op("x[D] -> y[D]", quadruple, quadruple_backward, name="fourfold") is op_module.OPS["fourfold"]


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("forward", [lambda x: x, lambda x: (x, x), lambda x: (x, (), ()), lambda x: None])
def test_a_forward_pass_that_returns_something_else_is_refused_in_one_sentence(forward):
    with pytest.raises(TypeError, match=r"forward returned .*; return y, saved"):
        Op("x[D] -> y[D]", forward, quadruple_backward)(np.ones(3))


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("backward", [lambda dy: dy, lambda dy: (), lambda dy: (dy,), lambda dy: None])
def test_a_backward_pass_that_returns_something_else_is_refused_in_one_sentence(backward):
    """An array alone would have been cut to its first rows."""
    y, back = Op("x[D], w[D] -> y[D]", lambda x, w: (x * w, ()), backward)(np.ones(3), np.ones(3))
    with pytest.raises(TypeError, match=r"backward returned .* for 2 inputs; return a tuple with one gradient for eac"):
        back(y)


@pytest.mark.usefixtures("unregistered")
def test_optional_inputs_may_be_left_out_or_named():
    """What is left out is None, also between others, and so is its gradient."""
    def forward(x, ids=None, b=None, *, power=1):
        return x ** power, (ids, b)

    op = Op("x[D], ids[D]<V?, b[D]? -> y[D]", forward, lambda dy, ids, b, power=1: (dy, None, b), power=[1, 2])
    x, ids, b = np.ones(2), np.zeros(2, int), np.full(2, 3.0)
    for inputs, named, count in [((x,), {}, 1), ((x, None, b), {}, 3), ((x,), {"b": b}, 3), ((x, ids), {"b": b}, 3),
                                 ((x,), {"b": b, "ids": ids, "power": 2}, 3), ((x,), {"b": None}, 1)]:
        _, back = op(*inputs, **named)
        dx, *others = back(x)
        assert dx is x
        assert len(others) == count - 1
        assert all(d is None for d in others[:1])
        assert all(d is b for d in others[1:])
    with pytest.raises(TypeError, match="x is None; pass an array"):
        op(None)
    with pytest.raises(TypeError, match="multiple values for argument 'ids'"):
        op(x, ids, ids=ids)
    with pytest.raises(ValueError, match="b has shape"):
        op(x, b=np.ones(3))


@pytest.mark.usefixtures("unregistered")
def test_axes_that_may_be_1_or_left_out():
    op = shaped("x[B T], b[B|1 2*T|1 3]?, mask[B T? 3]<2? -> y[B T]")
    x = np.zeros((2, 5))
    for shape in [(2, 10, 3), (1, 10, 3), (2, 1, 3), (1, 1, 3)]:
        op(x, np.zeros(shape))
    for shape in [(2, 5, 3), (3, 10, 3), (0, 10, 3), (2, 10, 1), (10, 3)]:
        with pytest.raises(ValueError, match="b has shape"):
            op(x, np.zeros(shape))
    for shape in [(2, 5, 3), (2, 3)]:
        op(x, mask=np.zeros(shape, int))
    for shape in [(1, 3), (2, 5), (5, 3), (2, 1, 3), (3,)]:
        with pytest.raises(ValueError, match="mask has shape"):
            op(x, mask=np.zeros(shape, int))


@pytest.mark.usefixtures("unregistered")
def test_a_valid_call_does_not_let_invalid_ones_pass():
    """The check runs once for each combination of shapes and dtypes: others must not slip through."""
    op = shaped("x[... D], w[D] -> y[... D]")
    for _ in range(2):
        op(*arrays((2, 3), 3))
        for wrong in (arrays((2, 3), 2), [np.zeros((2, 3)), np.zeros(3, "float32")], arrays((2, 3))):
            with pytest.raises((TypeError, ValueError)):
                op(*wrong)


@pytest.mark.usefixtures("unregistered")
def test_back_gives_one_gradient_for_each_input_and_refuses_another_precision():
    y, back = Op("x[D], b[D]? -> y[D]", lambda x, b=0: (x + b, ()), lambda dy: (dy, dy))(np.ones(3))
    assert len(back(y)) == 1
    with pytest.raises(TypeError, match="dy is float32 but y is float64"):
        back(y.astype("float32"))


@pytest.mark.usefixtures("unregistered")
def test_several_outputs_are_given_and_taken_as_a_tuple():
    op = Op("x[D] -> s[D], p[]", lambda x: ((x + 1, np.sum(x * x)), (x,)), lambda dy, x: (dy[0] + 2 * dy[1] * x,))
    x = np.arange(3.0)
    (s, p), back = op(x)
    np.testing.assert_array_equal(s, [1, 2, 3])
    assert p == 5
    dx, = back((s, p))
    np.testing.assert_array_equal(dx, [1, 12, 23])
    with pytest.raises(ValueError, match=r"dp has shape \(3,\), p has \(\)"):
        back((s, s))
    with pytest.raises(TypeError, match="ds is float32 but s is float64"):
        back((s.astype("float32"), p))
    for wrong in (s, (s,), (s, p, p)):
        with pytest.raises(TypeError, match=rf"returns s\[D\], p\[\]: pass one gradient for each, not {len(wrong)}"):
            back(wrong)
