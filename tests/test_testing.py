"""The gradient checker: its problems follow the shape lines; it rejects wrong gradients and accepts correct ones."""
import itertools
import re

import numpy as np
import pytest

import pyllama.ops  # noqa: F401 -- registers
from pyllama.op import OPS, Op, between
from pyllama.ops import add_rms_norm, rms_norm
from pyllama.shapes import signature
from pyllama.testing import check, gradcheck, problem
from pyllama.testing.methods import slopes
from pyllama.testing.ops import OpFunction, OpSession, most_telling, smaller
from pyllama.testing.passes import Faults, flat
from pyllama.testing.problems import choose_by
from pyllama.testing.report import Pair, Report, Verdict

EPS = 2.0 ** -52


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_problems_fit_and_draw_every_option_and_every_optional_input(op):
    """100 problems miss one value in four with probability 3e-13; the seed is fixed, so it is now or never."""
    rng, counts, values = np.random.default_rng(0), set(), {name: [] for name in op.options}
    for _ in range(100):
        inputs, options, dy = problem(op, choose_by(rng))
        op.check(signature(inputs))
        y, _ = op(*inputs, **options)
        assert [np.shape(a) for a in op.each(y)] == [d.shape for d in op.each(dy)]
        counts.add(len(inputs))
        for name, value in options.items():
            values[name].append(value)
    required = sum(not wanted.optional for wanted in op.inputs)
    assert counts == set(range(required, len(op.inputs) + 1))
    for name, possible in op.options.items():
        if isinstance(possible, between):
            low, high = min(values[name]), max(values[name])
            assert possible.low <= low
            assert high <= possible.high
            assert high - low > (possible.high - possible.low) / 2
        else:
            assert all(value in values[name] for value in possible)


@pytest.mark.usefixtures("unregistered")
def test_problems_respect_equal_axes_and_bounds():
    def forward(x, w, ids, bits, table):
        return x, ()

    op = Op("x[A 2*B], w[B A], ids[A]<V, bits[A]<2, table[V 1] -> y[A 2*B]", forward, None)
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(100):
        (x, w, ids, bits, table), _, dy = problem(op, choose_by(rng))
        A, B = w.shape[::-1]
        assert x.shape == dy.shape == (A, 2 * B)
        assert np.all((ids >= 0) & (ids < len(table)))
        assert np.all((bits >= 0) & (bits < 2))
        sizes.add((A, B))
    assert len(sizes) > 10


def test_whole_intervals_are_drawn_to_their_ends():
    choose = choose_by(np.random.default_rng(0))
    assert {choose(between(1, 3)) for _ in range(100)} == {1, 2, 3}


def size(case):
    """The sum of the sizes of the terms of <dy, J v> or of <dx, v>, whichever is larger."""
    line = case.values.line(case.place)
    return max(np.abs(case.dy * slopes.imaginary(line)).sum(), np.abs(case.dx * line.v).sum())


def blur(report):
    """The largest error, relative to the slope, that the sharpest verdict of a pair would not see."""
    return max(min(verdict.tolerance / max(abs(verdict.measured), 1e-300) for verdict in pair.verdicts
                   if verdict.method in ("complex step", "differences")) for pair in report.pairs)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_op_is_judged_by_a_complex_step_as_exactly_as_float64_allows(op, monkeypatch):
    """A checker with too large a tolerance calls everything right.

    On these 20 problems it needs to excuse no rounding but 1e-11 of the terms and 4 eps of y, with which f is rounded.
    """
    sessions = []

    class Kept(OpSession):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            sessions.append(self)

    monkeypatch.setattr("pyllama.testing.ops.OpSession", Kept)
    assert check(op, problems=20)
    judged = [found for session in sessions for found in itertools.chain(*session.found.values())]
    assert len(judged) >= len(sessions) == 20
    for _, verdict, case, _ in judged:
        assert (verdict.method, verdict.status) == ("complex step", "passed")
        rounding = 4 * EPS * np.abs(case.dy * flat(case.values.outputs)).sum()
        assert verdict.tolerance <= 1.001e-11 * size(case) + rounding


def norm_backward(dy, x, w, r, *, eps):
    n, g = x * r, w * dy
    return r * (g - n * np.mean(g * n, axis=-1, keepdims=True)), np.sum(dy * n, axis=tuple(range(dy.ndim - 1)))


def sign_error(dy, x, w, r, *, eps):
    n, g = x * r, w * dy
    return r * (g + n * np.mean(g * n, axis=-1, keepdims=True)), norm_backward(dy, x, w, r, eps=eps)[1]


def eps_forgotten(dy, x, w, r, *, eps):
    return norm_backward(dy, x, w, np.mean(x * x, axis=-1, keepdims=True) ** -0.5, eps=eps)


def w_outside_the_mean(dy, x, w, r, *, eps):
    n = x * r
    return w * r * (dy - n * np.mean(dy * n, axis=-1, keepdims=True)), norm_backward(dy, x, w, r, eps=eps)[1]


def first_row_only(dy, x, w, r, *, eps):
    dx, _ = norm_backward(dy, x, w, r, eps=eps)
    return dx, (dy * x * r).reshape(-1, len(w))[:1].sum(axis=0)


def sometimes_nan(dy, x, w, r, *, eps):
    dx, dw = norm_backward(dy, x, w, r, eps=eps)
    return (dx * np.nan if dx.size % 3 == 0 else dx), dw


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("backward", "wrong"), [(norm_backward, None), (sign_error, "x"), (eps_forgotten, None),
                                                 (w_outside_the_mean, "x"), (first_row_only, "w"),
                                                 (sometimes_nan, "x")])
def test_the_checker_tells_right_from_wrong(backward, wrong):
    """Every planted error is larger than 1e-3 on some of 50 problems, where a right gradient is exact to 1e-11."""
    def forward(x, w, *, eps):
        return rms_norm.forward(x, w, eps=eps)

    report = check(Op(rms_norm.shapes, forward, backward, eps=between(1e-3, 1.0)))
    assert bool(report) == (backward is norm_backward)
    if not report:
        assert wrong in (None, report.pairs[-1].input)
        assert not report.pairs[-1].worst.severity <= 1e6


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("kept", "error"), [((1, 1), 0), ((0, 1), 1), ((1, 0), 1)])
def test_the_checker_sees_every_output(kept, error):
    def forward(x, a, w, *, eps):
        return add_rms_norm.forward(x, a, w, eps=eps)

    def backward(dy, *saved, eps):
        return add_rms_norm.backward([keep * d for keep, d in zip(kept, dy, strict=True)], *saved)

    report = check(Op(add_rms_norm.shapes, forward, backward, eps=between(1e-3, 1.0)))
    assert bool(report) == (not error)


# --- ops of a user ----------------------------------------------------------------------------------------------------

def checked(line, forward, backward):
    return check(Op(line, forward, backward), problems=20)


ONE, TWO = "x[... D] -> y[... D]", "x[... D], w[D] -> y[... D]"


def product(x, w):
    return x * w, (x, w)


def summed(a):
    return a.reshape(-1, a.shape[-1]).sum(0)


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("backward", "message"), [
    (lambda dy, x, w: (dy * w + 0j, summed(dy * x)), "the gradient of x is complex128"),
    (lambda dy, x, w: ((dy * w).astype("float32"), summed(dy * x)), "the gradient of x is float32, but the input is f"),
    (lambda dy, x, w: (dy * w, dy * x), "sum it over the axes along which w was broadcast"),
    (lambda dy, x, w: (dy * w, None), "no gradient for w, which is floating"),
    (lambda dy, x, w: (dy * w, summed(x.__imul__(dy))), "back changes the inputs in place"),
    (lambda dy, x, w: (dy.__imul__(w), summed(dy * x)), "back changes dy in place"),
])
def test_results_that_are_not_gradients_are_refused(backward, message):
    assert any(message in fault.sentence for fault in checked(TWO, product, backward).faults)


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("forward", "backward"), [
    (lambda x: (np.abs(x), (x,)), lambda dy, x: (dy * np.sign(x),)),
    (lambda x: (np.tanh(x.astype("float64")), (x,)), lambda dy, x: (dy / np.cosh(x) ** 2,)),
    (lambda x: (np.log(x), (x,)), lambda dy, x: (dy / x,)),
    (lambda x: (np.arctanh(x), (x,)), lambda dy, x: (dy / (1 - x * x),)),
    (lambda x: (np.log(x) - np.log1p(-x), (x,)), lambda dy, x: (dy / (x * (1 - x)),)),
    (lambda x: (1e-12 * np.tanh(x), (x,)), lambda dy, x: (1e-12 * dy / np.cosh(x) ** 2,)),
    (lambda x: ((x / np.linalg.norm(x, axis=-1, keepdims=True)), (x, np.linalg.norm(x, axis=-1, keepdims=True))),
     lambda dy, x, n: (dy / n - x * np.sum(dy * x, -1, keepdims=True) / n ** 3,)),
], ids=["abs", "cast", "log", "arctanh", "logit", "small", "norm"])
def test_functions_of_any_kind_domain_and_size_are_judged_rightly(forward, backward):
    right = checked(ONE, forward, backward)
    assert right
    assert blur(right) < 1e-6
    for times in (0.0, 1.01):
        wrong = checked(ONE, forward, lambda dy, *saved, times=times: (times * backward(dy, *saved)[0],))
        assert not wrong
        assert wrong.error > 1e3


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("times", [1, 1.01])
def test_a_loss_that_is_not_defined_for_no_rows_is_judged_on_the_others(times):
    def forward(x, t):
        return np.mean(np.abs(x - t)), (x, t)

    def backward(dloss, x, t):
        dx = times * dloss * np.sign(x - t) / x.size
        return dx, -dx

    assert bool(checked("x[N D], t[N D] -> loss[]", forward, backward)) == (times == 1)


@pytest.mark.usefixtures("unregistered")
def test_an_op_that_is_nan_where_an_input_is_left_out_is_refused_as_any_other():
    def forward(x, a=None, b=None):
        return x * (np.nan if a is None and b is not None else 1), ()

    with pytest.raises(ValueError, match="forward returned NaN"):
        checked("x[D], a[D]?, b[D]? -> y[D]", forward, lambda dy: (dy, 0 * dy, 0 * dy))


@pytest.mark.usefixtures("unregistered")
def test_an_op_that_jumps_everywhere_is_not_judged():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="is random"):
        checked(ONE, lambda x: (rng.standard_normal(x.shape), ()), lambda dy: (0 * dy,))


class Stub:
    """A problem that is wrong, with a report that names these causes."""
    wrong = True

    def __init__(self, *causes):
        self.causes = causes

    def report(self):
        verdict = Verdict("differences", "wrong")
        return Report("f", (Pair("x", "y", (verdict,), diagnoses=self.causes),))


@pytest.mark.parametrize(("problems", "shown"), [((Stub(), Stub("Wrong sign"), Stub("Another")), ("Wrong sign",)),
                                                 ((Stub(), Stub()), ())])
def test_of_wrong_problems_one_whose_cause_is_named_is_reported(problems, shown):
    assert most_telling([*problems], Faults()).pairs[0].diagnoses == shown


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("longest", "size"), [(1, range(12, 257)), (300, range(257, 20_000))])
def test_a_mistake_is_explained_in_few_numbers_if_it_is_there(longest, size):
    """Here it is there in any array, or only where an axis is longer than those of small problems."""
    def backward(dy, x):
        return dy * (2 if max(x.shape) >= longest else 1),

    function = OpFunction(Op(ONE, lambda x: (np.array(x), (x,)), backward), [np.ones((515, 8))], {})
    session = OpSession(function, 0, 0)
    session.run()
    explained = smaller(session)
    assert explained.wrong
    assert explained.size in size


@pytest.mark.usefixtures("unregistered")
def test_check_explains_a_large_problem_in_few_numbers():
    """The seed draws an array of [5 1030 3]."""
    double = Op(ONE, lambda x: (np.array(x), ()), lambda dy: (2 * dy,))
    (x,), _, _ = problem(double, choose_by(np.random.default_rng(6)))
    assert x.size > 1000
    cause, = check(double, seed=6, problems=1).pairs[-1].diagnoses
    assert int(re.search(r"at all (\d+) entries", cause)[1]) <= 256


@pytest.mark.parametrize("op", ["rms_norm", np.tanh, None])
def test_what_is_not_an_op_is_refused(op):
    with pytest.raises(TypeError, match="give an op, such as"):
        check(op)


def test_the_outputs_of_an_op_have_the_names_of_its_shape_line():
    names = {y.name for y in add_rms_norm.outputs}
    assert {pair.output for pair in check(add_rms_norm, problems=3).pairs} == names
    x = np.random.default_rng(0).standard_normal((3, 2, 4))
    assert {pair.output for pair in gradcheck(add_rms_norm, [x[0], x[1], x[2, 0]]).pairs} == names
