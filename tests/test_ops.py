"""Every registered op on every backend.  Nothing here names an op: to be registered is to be tested."""
import inspect
import itertools
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllama.ops  # noqa: F401 -- registers
from pyllama import backend, params
from pyllama.op import OPS
from pyllama.shapes import is_bfloat16, is_vector, signature
from pyllama.testing import accuracy, problem
from pyllama.testing.accuracy import tolerances
from pyllama.testing.calls import Function
from pyllama.testing.methods import slopes
from pyllama.testing.methods.compare import blur, inner
from pyllama.testing.ops import OpFunction, OpSession
from pyllama.testing.passes import is_float
from pyllama.testing.problems import choose_by, packed
from pyllama.testing.strategies import layouts, problems
from tests import fakecupy
from tests.fakecupy.rules import NoLoop
from tests.fence import can_fence, fence_results, fenced
from tests.gpu import brought, moved, share_memory
from tests.test_testing import size

RUNS = [(op, on) for op in OPS.values() for on in op.backends()]
each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
each_run = pytest.mark.parametrize(("op", "on"), RUNS, ids=[f"{op.name}-{on}" for op, on in RUNS])
each_kernel = pytest.mark.parametrize(("op", "on"), [run for run in RUNS if run[1] != "numpy"],
                                      ids=lambda x: getattr(x, "name", x))
LOW_RUNS = [(*run, "bfloat16") for run in RUNS if run[1] != "cuda"]
each_run_also_low = pytest.mark.parametrize(("op", "on", "dtype"), [(*run, "float64") for run in RUNS] + LOW_RUNS,
                                            ids=lambda x: getattr(x, "name", x))
each_run_of_numpy_or_a_gpu = pytest.mark.parametrize(
    ("op", "on", "dtype"), [run for run in [(*run, "float32") for run in RUNS] + LOW_RUNS if run[1] != "cpu"],
    ids=lambda x: getattr(x, "name", x))
each_kernel_and_dtype = pytest.mark.parametrize(
    ("op", "on", "dtype"), [run for run in LOW_RUNS + [(*run, t) for run in RUNS for t in ("float64", "float32")]
                            if run[1] != "numpy"], ids=lambda x: getattr(x, "name", x))
each_low_run = pytest.mark.parametrize(("op", "on"), [run[:2] for run in LOW_RUNS], ids=lambda x: getattr(x, "name", x))


def vector(op, y):
    """The outputs of op, or their gradients dy, end to end."""
    return np.concatenate([np.ravel(a) for a in op.each(y)])


def run(op, on, inputs, options, *dys):
    """[y, gradients for the first dy, gradients for the second, ...]"""
    with backend.use(on):
        y, back = op(*inputs, **options)
        return [y, *(back(dy) for dy in dys)]


def forward_on(op, on, inputs, options):
    """((y, saved), backward) of this backend."""
    with backend.use(on):
        return op.run(inputs, options, op.check(signature(inputs)))[:2]


def results(op, on, inputs, options, dy):
    """The outputs and the gradients that exist, in one list."""
    with backend.use(on):
        return accuracy.results(op, inputs, options, dy)


@each_run
@given(data=st.data(), number=st.integers(0, 99))
def test_backward_is_right_by_exact_derivatives_of_the_reference(op, on, data, number):
    """Each gradient of each output, linear in dy, in one of the layouts; and nothing that passes must not do."""
    inputs, options, _ = data.draw(problems(op))
    session = OpSession(OpFunction(op, inputs, options), number, number)
    with backend.use(on):
        session.run()
        assert not session.wrong, session.report()
    assert all(map(session.judged, session.found))
    for found in itertools.chain(*session.found.values()):
        most = 1e-11 * max(1.0, size(found.case))
        assert found.verdict.status == "undecided" or found.verdict.error <= most, found


class AsDrawn(OpSession):
    """A check at the drawn problem alone: the test above sees to the layouts."""

    def points(self):
        return iter(())


def within_error_bars(case):
    """Is the claimed slope the measured one within its error bar, however long that is?"""
    line = case.values.line(case.place)
    found = slopes.slopes(line, case.eps, case.largest)
    bar = slopes.bound(case.dy * found.error) + blur(case.dx, line.v, case.eps)
    return abs(np.sum(case.dy * found.value) - inner(case.dx, line.v)) <= bar < np.inf


@each_kernel
@given(data=st.data(), dtype=st.sampled_from(["float64", "float32"]))
def test_backward_agrees_with_the_slopes_of_its_own_forward(op, on, data, dtype):
    """By differences of the kernels alone, in this precision: they refuse complex numbers and other precisions.

    A slope may be as small as its error bar in float32, such as that of a norm of two numbers.
    """
    inputs, options, _ = data.draw(problems(op, dtype))

    def kernels(*arrays):
        assert all(x.dtype == dtype for x in arrays if x is not None and x.dtype.kind != "i")
        return op(*arrays, **options)

    session = AsDrawn(Function(kernels, inputs), 0, 0)
    with backend.use(on):
        session.run()
        assert not session.wrong, session.report()
        for key, found in session.found.items():
            assert session.judged(key) or (dtype == "float32" and within_error_bars(found[0].case)), key


@each_run
@given(data=st.data())
def test_float64_agrees_with_the_reference(op, on, data):
    inputs, options, dy = data.draw(problems(op))
    for got, exact in zip(results(op, on, inputs, options, dy), results(op, "numpy", inputs, options, dy), strict=True):
        assert got.dtype == "float64"
        np.testing.assert_allclose(got, exact, rtol=1e-10, atol=1e-10 * max(1, np.abs(exact).max(initial=0)))


@each_run
@given(data=st.data())
def test_float32_is_as_accurate_as_float32_can_be(op, on, data):
    """Against the float64 reference; pyllama/testing/accuracy.py says what may be lost."""
    inputs, options, dy = data.draw(problems(op, "float32"))
    for got, (want, error) in zip(results(op, on, inputs, options, dy), tolerances(op, inputs, options, dy),
                                  strict=True):
        assert got.dtype == "float32"
        assert np.abs(got - want).max(initial=0) <= error


@each_low_run
@given(data=st.data())
def test_bfloat16_is_computed_in_float32_and_rounded_once(op, on, data):
    """Against the float64 reference of the same numbers, whatever their layout.

    A weight's gradient is not rounded, and neither is a loss.
    """
    inputs, options, dy = data.draw(problems(op, "bfloat16"))
    wanted = zip(tolerances(op, inputs, options, dy), accuracy.precisions(op, inputs), strict=True)
    inputs = [x if x is None or not data.draw(st.booleans()) else data.draw(layouts(x)) for x in inputs]
    dy = packed(data.draw(layouts(d)) if d.ndim else d for d in op.each(dy))
    for got, ((want, error), dtype) in zip(results(op, on, inputs, options, dy), wanted, strict=True):
        assert got.dtype == dtype
        assert got.shape == want.shape
        assert (np.abs(got.astype("float64") - want) <= error).all()


LAYOUTS = {
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1),
}
REPEATED = {"broadcast": lambda x: np.broadcast_to(x[:1], x.shape)}         # changes the numbers


def viewed(layout, arrays):
    """Read-only views of the arrays, among which may be None."""
    views = [x if x is None else layout(x) if x.ndim else x.view() for x in arrays]
    for x in views:
        if x is not None:
            x.flags.writeable = False
    return views


@each_run
@given(data=st.data())
def test_memory_layout_does_not_matter(op, on, data):
    """Views of every kind, all of them read-only, give what dense arrays give."""
    inputs, options, dy = data.draw(problems(op))
    drawn = inputs, [np.array(d) for d in op.each(dy)]
    repeated = [[x if x is None else np.array(x) for x in viewed(REPEATED["broadcast"], arrays)] for arrays in drawn]
    for (inputs, dys), kinds in (drawn, LAYOUTS), (repeated, REPEATED):
        expected = results(op, on, inputs, options, packed(dys))
        for name, layout in kinds.items():
            got = results(op, on, viewed(layout, inputs), options, packed(viewed(layout, dys)))
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * max(1, np.abs(b).max(initial=0)),
                                           err_msg=name)


@each_run_also_low
@given(data=st.data())
def test_nothing_handed_in_is_changed_and_nothing_handed_out_is_shared(op, on, dtype, data):
    """Neither pass writes into its inputs, what was saved, or dy; results are the caller's own, writable memory.

    But two gradients that are equal may be one array: the tests of the values see to it that they are.
    """
    inputs, options, dy = data.draw(problems(op, dtype))
    inputs, dys = moved(on, inputs), moved(on, list(op.each(dy)))
    handed_in = [a for a in (*inputs, *dys) if a is not None]
    inputs_before = [a.copy() for a in handed_in]
    (y, saved), backward = forward_on(op, on, inputs, options)
    kept = [a for a in saved if isinstance(a, type(inputs[-1]))]
    kept_before = [a.copy() for a in kept]
    grads = backward(packed(dys), *saved, **options)
    for a, before in zip([*handed_in, *kept], [*inputs_before, *kept_before], strict=True):
        np.testing.assert_array_equal(brought(a), brought(before))
    distinct = {id(a): a for a in grads}.values()
    handed_out = [a for a in (*op.each(y), *distinct) if isinstance(a, type(inputs[-1]))]
    for i, a in enumerate(handed_out):
        assert on == "cuda" or a.flags.writeable
        assert not any(share_memory(a, b) for b in [*handed_in, *handed_out[:i]])


@each_run_also_low
@given(data=st.data())
def test_back_keeps_alive_what_forward_saved_and_nothing_else(op, on, dtype, data):
    """A model's memory is what its backs keep: an output or an input too many in each would show in no value."""
    inputs, options, _ = data.draw(problems(op, dtype))
    inputs = moved(on, inputs)
    kind = type(inputs[-1])
    with backend.use(on):
        (y, saved), _ = forward_on(op, on, inputs, options)
        kept = [any(a is b for b in saved) for a in (*inputs, *op.each(y)) if isinstance(a, kind)]
        del y, saved
        mine = [x if x is None else x.copy() for x in inputs]
        y, back = op(*mine, **options)
        arrays = [weakref.ref(a) for a in (*mine, *op.each(y)) if isinstance(a, kind)]
        del mine, y
        assert [ref() is not None for ref in arrays] == kept
        del back


@each_low_run
@given(data=st.data())
def test_back_keeps_no_copy_in_float32(op, on, data):
    """The memory of activations is what bfloat16 halves.  A vector of weights may be widened: it is short.

    Two numbers may be those of a statistic by chance, such as [1 0]; of one its lse is the number.
    """
    inputs, options, _ = data.draw(problems(op, "bfloat16"))
    (y, saved), _ = forward_on(op, on, inputs, options)
    short = [x for x, declared in zip(inputs, op.inputs, strict=False) if is_vector(declared)]
    for x in (*(x for x in inputs if not any(x is w for w in short)), *op.each(y)):
        if any(np.array_equal(np.ravel(x), w) for w in short):                  # the numbers of both, by chance
            continue
        if is_float(x) and is_bfloat16(x.dtype) and x.shape[-1] > 1 and len({*x.ravel().tolist()}) > 2:
            assert not any(is_float(a) and a.dtype == np.float32 and a.size == x.size
                           and np.array_equal(a.ravel(), x.ravel()) for a in saved if not any(a is b for b in inputs))


@each_run_of_numpy_or_a_gpu
@given(data=st.data())
def test_the_same_call_gives_the_same_bits(op, on, dtype, data):
    """Of C kernels, the last test of this file says more."""
    inputs, options, dy = data.draw(problems(op, dtype))
    for a, b in zip(results(op, on, inputs, options, dy), results(op, on, inputs, options, dy), strict=True):
        np.testing.assert_array_equal(a, b)


@each_run_also_low
@given(data=st.data())
def test_gradients_are_added_where_they_belong(op, on, dtype, data):
    """Within params.adding: each place gets its gradient once, on top of what it held, and nothing is left to add.

    Places for inputs in bfloat16 are float32.  A weight's gradient may be added to its place term by term, so both are
    within its error of the exact sum, but for a last rounding.
    """
    inputs, options, dy = data.draw(problems(op, dtype))
    inputs = [x if x is None else np.array(x) for x in inputs]
    floats = [i for i, x in enumerate(inputs) if is_float(x)]
    _, grads = run(op, on, inputs, options, dy)
    held = [np.random.default_rng(i).standard_normal(inputs[i].shape) for i in floats]
    held = held if dtype == "float64" else [h.astype("float32") for h in held]
    places, inputs = moved(on, [h.copy() for h in held]), moved(on, inputs)
    with params.adding([inputs[i] for i in floats], places):
        _, left = run(op, on, inputs, options, packed(moved(on, list(op.each(dy)))))
    bounds = [1e-12 * max(1, np.abs(grads[i]).max(initial=0)) for i in floats]
    if dtype == "bfloat16":
        errors = tolerances(op, inputs, options, dy)[len(op.outputs):]
        bounds = [2 * error + 2.0 ** -23 * np.abs(h) for (_, error), h in zip(errors, held, strict=True)]
    for i, place, before, bound in zip(floats, places, held, bounds, strict=True):
        assert left[i] == 0.0
        assert (np.abs(brought(place) - (before + grads[i])) <= bound + 1e-12 * np.abs(before)).all()


def on_device(arrays):
    return [a if a is None else fakecupy.module().asarray(a) for a in arrays]


@each_op
@given(data=st.data())
def test_the_reference_runs_on_device_arrays(op, data):
    """It is what a device falls back on.  Results lie in C order there, so that sums may be taken in another order."""
    inputs, options, dy = data.draw(problems(op))
    y, grads = run(op, "numpy", on_device(inputs), options, packed(on_device(op.each(dy))))
    got = [a for a in (*op.each(y), *grads) if a is not None]
    for a, b in zip(got, results(op, "numpy", inputs, options, dy), strict=True):
        assert type(a) is fakecupy.module().ndarray
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.get(), b, rtol=1e-12, atol=1e-12 * max(1, np.abs(b).max(initial=0)))


@each_op
@given(data=st.data())
def test_the_reference_takes_complex_device_arrays(op, data):
    """So that a complex step differentiates it there too, but for the functions that CuPy has for real numbers alone.
    """
    inputs, options, _ = data.draw(problems(op))
    inputs = [x.astype(complex) if is_float(x) else x for x in inputs]
    expected = vector(op, op.forward(*inputs, **options)[0])
    try:
        y, _ = op.forward(*on_device(inputs), **options)
    except NoLoop:
        return
    np.testing.assert_allclose(vector(op, y).get(), expected, rtol=1e-12, atol=1e-12)


@each_op
@given(data=st.data())
def test_inputs_that_do_not_fit_are_refused_in_one_sentence(op, data):
    inputs, options, dy = data.draw(problems(op))
    _, back = op(*inputs, **options)
    for i, output in enumerate(op.outputs):
        dys = list(op.each(dy))
        dys[i] = np.zeros((*dys[i].shape, 2))
        with pytest.raises(ValueError, match=f"^{op.name}: d{output.name} has shape"):
            back(packed(dys))
    with pytest.raises(TypeError, match=f"^{op.name} takes "):
        op(*inputs, *inputs, *inputs, **options)
    i = data.draw(st.sampled_from([i for i, x in enumerate(inputs) if is_float(x) and x.shape[-1]]))
    name = op.inputs[i].name
    with pytest.raises(TypeError, match=f"^{op.name}: {name} must be floating"):
        op(*inputs[:i], inputs[i].astype(int), *inputs[i + 1:], **options)
    if len([x for x in inputs if is_float(x)]) > 1:
        with pytest.raises(TypeError, match=f"^{op.name}: .* is float.* but .* is float"):
            op(*inputs[:i], inputs[i].astype("float32"), *inputs[i + 1:], **options)
        with pytest.raises(ValueError, match=f"^{op.name}: .* has shape .* which does not fit"):
            op(*(np.concatenate([x] * 3, axis=-1) if j == i else x for j, x in enumerate(inputs)), **options)


@each_op
def test_an_option_has_one_default(op):
    """Op hands an option to both passes if it is given, and to neither if not."""
    forward, backward = (inspect.signature(f).parameters for f in (op.forward, op.backward))
    for name in op.options:
        defaults = {f[name].default for f in (forward, backward) if name in f}
        assert len(defaults) <= 1, name


@each_run
def test_an_option_left_out_is_the_reference_s_default(op, on):
    inputs, _, dy = problem(op, choose_by(np.random.default_rng(0)))
    defaults = {name: option.default for name, option in inspect.signature(op.forward).parameters.items()
                if option.kind is option.KEYWORD_ONLY}
    with backend.use(on):
        (y, back), (same_y, back_too) = op(*inputs), op(*inputs, **defaults)
        np.testing.assert_array_equal(vector(op, y), vector(op, same_y))
        for a, b in zip(back(dy), back_too(dy), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)


@can_fence
@each_kernel_and_dtype
@given(data=st.data(), behind=st.booleans())
def test_kernels_touch_nothing_beyond_their_arrays_and_give_the_same_bits_again(op, on, dtype, data, behind):
    """A kernel that reads or writes beyond an input, a result or scratch memory ends the process."""
    inputs, options, dy = data.draw(problems(op, dtype))
    wanted = results(op, on, inputs, options, dy)
    inputs, dys = ([x if x is None else fenced(x, behind) for x in arrays] for arrays in (inputs, op.each(dy)))
    with pytest.MonkeyPatch.context() as patch:
        fence_results(patch, behind)
        got = results(op, on, inputs, options, packed(dys))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
