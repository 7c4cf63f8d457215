"""gradcheck takes every form of a function and its gradients, and refuses wrong use in one sentence."""
import collections
import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from pyllama.testing import GradcheckError, check_grads, check_partials, gradcheck, gradgradcheck

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((3, 4)), RNG.standard_normal(4)


def checked(func, inputs, **options):
    return gradcheck(func, inputs, raise_exception=False, seed=0, budget=None, **options)


# --- forms ------------------------------------------------------------------------------------------------------------

def product(x, w):
    return x * w


def dproduct(dy, x, w):
    return dy * w, (dy * x).sum(0)


def test_y_and_back():
    assert checked(lambda x, w: (x * w, lambda dy: dproduct(dy, x, w)), [X, W])


def test_a_backward_of_dy_and_the_inputs():
    assert checked(product, [X, W], backward=dproduct)
    report = checked(product, [X, W], backward=lambda dy, x, w: (dy * w, 2 * (dy * x).sum(0)))
    assert [pair.input for pair in report.pairs if pair.wrong] == ["w"]


def test_a_backward_of_dy_and_what_forward_saved():
    def forward(x, w):
        return x * w, (w, x)

    assert checked(forward, [X, W], backward=lambda dy, w, x: (dy * w, (dy * x).sum(0)), saved=True)


@pytest.mark.parametrize("adds", [False, True])
def test_a_backward_that_fills_arrays_or_adds_to_them(adds):
    def backward(dy, x, w, out):
        for place, dx in zip(out, dproduct(dy, x, w), strict=True):
            place[...] = place + dx if adds else dx

    def half(dy, x, w, out):
        assert isinstance(out, tuple)                       # numba compiles no function of a list of arrays
        out[0][...] = dy * w

    assert checked(product, [X, W], backward=backward)
    assert [pair.input for pair in checked(product, [X, W], backward=half).pairs if pair.wrong] == ["w"]


def test_a_backward_that_fills_the_array_of_a_single_input():
    def backward(dy, x, out):
        out[...] = dy * np.cos(x)

    assert checked(np.sin, [X], backward=backward)


def test_the_gradient_of_a_single_input_may_stand_alone_or_not():
    assert checked(np.sin, X, backward=lambda dy, x: dy * np.cos(x))
    assert checked(np.sin, [X], backward=lambda dy, x: (dy * np.cos(x),))


@pytest.mark.parametrize("x", [0.5, np.float64(0.5), np.array(0.5)])
def test_numbers_are_inputs_and_outputs_of_their_own_kind(x):
    def f(z):
        assert type(z) is type(x) or isinstance(z, complex | np.complexfloating) or z.dtype == complex
        return z * z, lambda dy: 2 * z * dy

    assert checked(f, [x])


@dataclasses.dataclass(frozen=True)
class Layer:
    weight: np.ndarray
    bias: list


@pytest.mark.parametrize("form", [list, tuple])
def test_the_gradients_of_a_single_list_may_stand_alone(form):
    def f(p, factor=1):
        return p[0] * p[1], lambda dy: form([dy * p[1], factor * dy * p[0]])

    report = checked(f, [form([X, X + 1])])
    assert report
    assert len(report.pairs) == 2
    assert checked(lambda p: (f(p)[0], lambda dy: (f(p)[1](dy),)), [form([X, X + 1])])
    assert [pair.wrong for pair in checked(lambda p: f(p, 2), [form([X, X + 1])]).pairs] == [False, True]


def test_a_dict_keeps_its_class():
    p = collections.defaultdict(lambda: 2.0, x=X)
    report = checked(lambda p: (p["x"] * p["factor"], lambda dy: {"x": dy * 2}), [p])
    assert [(pair.input, pair.wrong) for pair in report.pairs] == [("p at x", False)]


def test_gradients_of_arrays_of_another_byte_order_may_be_native():
    assert checked(lambda x: (x * x, lambda dy: (2 * x * dy).astype("=f4")), [X.astype(">f4")])


def test_inputs_may_be_trees_of_arrays():
    """The gradient of a dict, a list, a tuple or a dataclass has its form."""
    def f(x, p, layer):
        y = x * p["scale"][0] + p["shift"] + layer.weight * layer.bias[0]

        def back(dy):
            total = dy.sum(0)
            return (dy * p["scale"][0], {"scale": (total @ x[0] * 0 + (dy * x).sum(0),), "shift": total},
                    Layer(total * layer.bias[0], [(total * layer.weight).sum()]))
        return y, back

    p = {"scale": (W + 2,), "shift": W - 1}
    report = checked(f, [X, p, Layer(W * 3, [0.7])])
    assert report
    assert {pair.input for pair in report.pairs} == {"x", "p at scale.0", "p at shift", "layer at weight",
                                                     "layer at bias.0"}


def test_several_outputs_are_judged_one_by_one_and_together():
    def f(x):
        return (np.sin(x), x.sum()), lambda dys: np.cos(x) * dys[0] + dys[1]

    report = checked(f, [X])
    assert report
    assert [pair.output for pair in sorted(report.pairs, key=lambda pair: pair.output)] == ["output 0", "output 1"]

    def either(x):                                  # forgets the second output where the first one counts
        return f(x)[0], lambda dys: np.cos(x) * dys[0] if dys[0].any() else np.full(x.shape, dys[1])

    report = checked(either, [X])
    assert [fault.kind for fault in report.faults] == ["outputs not added"]


def test_integers_and_inputs_left_out_have_no_gradient():
    def f(table, ids, bias):
        assert bias is None
        y = table[ids]

        def back(dy):
            d = np.zeros_like(table)
            np.add.at(d, ids, dy)
            return d, None, None
        return y, back

    report = checked(f, [X, np.array([0, 2, 1]), None])
    assert report
    assert [pair.input for pair in report.pairs] == ["table"]


def test_names_are_those_of_the_parameters_or_the_user_s():
    assert checked(product, [X, W], backward=dproduct, names=["a", "b"]).pairs[0].input in "ab"
    assert {pair.input for pair in checked(product, [X, W], backward=dproduct).pairs} == {"x", "w"}
    assert checked(lambda *xs: (xs[0] * 2, lambda dy: 2 * dy), [X]).pairs[0].input == "input 0"


# --- options ----------------------------------------------------------------------------------------------------------

def cube(times):
    return lambda x: (x ** 3, lambda dy: times * 3 * x * x * dy)


def test_a_failure_raises_the_report_unless_it_is_asked_for():
    with pytest.raises(GradcheckError) as error:
        gradcheck(cube(1.1), [X], seed=0)
    assert error.value.report.pairs[0].wrong
    assert not checked(cube(1.1), [X])


def test_eps_atol_and_rtol_apply_to_differences_alone_and_the_report_says_so():
    """torch's arguments: |a - n| <= atol + rtol |n|; the complex step stays exact."""
    off = cube(1 + 1e-5)
    report = checked(off, [X], eps=1e-4, atol=1e-3, rtol=1e-3)
    by_method = {verdict.method: verdict for verdict in report.pairs[0].verdicts}
    assert by_method["differences"].status == "passed"
    assert by_method["differences"].tolerance == pytest.approx(1e-3 + 1e-3 * abs(by_method["differences"].measured))
    assert by_method["complex step"].status == "wrong"
    assert any("apply to the differences alone" in note for note in report.notes)
    assert checked(off, [X], atol=1e-3, methods=["differences"])
    assert not checked(off, [X], atol=1e-9, rtol=1e-9, methods=["differences"])


def real_only(x):
    if np.iscomplexobj(x):
        raise TypeError("real numbers only")
    return np.sin(x)


def test_a_given_tolerance_replaces_the_derived_one_of_a_function_that_is_not_holomorphic():
    backward = lambda dy, x: dy * np.cos(x) * (1 + 1e-4)                                             # noqa: E731
    assert not checked(real_only, [X], backward=backward, methods=["differences"])
    assert checked(real_only, [X], backward=backward, atol=1e-2, methods=["differences"])


def test_a_jvp_adds_the_dot_product():
    def jvp(inputs, tangents):
        return np.cos(inputs[0]) * tangents[0]

    report = checked(np.sin, [X], backward=lambda dy, x: dy * np.cos(x), jvp=jvp)
    assert report
    assert "dot product" in {verdict.method for verdict in report.pairs[0].verdicts}
    wrong = checked(np.sin, [X], backward=lambda dy, x: dy * np.cos(x), jvp=lambda xs, ts: ts[0])
    assert [verdict.method for verdict in wrong.pairs[0].verdicts if verdict.status == "wrong"] == ["dot product"]


@pytest.mark.parametrize(("tangent", "message"), [
    (np.ones(4), r"jvp returned a tangent of shape \(4,\) for y, which has \(3, 4\); return one of the same shape"),
    (1.0, r"jvp returned a tangent of shape \(\) for y, which has \(3, 4\); return one of the same shape"),
    ((X, X), "jvp returned a tuple of 2 for 1 output; return a tangent for each"),
    (None, r"jvp returned None as the tangent of y; return an array of its shape, \(3, 4\)")])
def test_a_tangent_of_another_form_is_refused(tangent, message):
    """One that broadcasts would be compared with something else."""
    for check in (gradcheck, lambda f, inputs, jvp: check_grads(f, inputs, 1, ["fwd"], jvp=jvp)):
        with pytest.raises(TypeError, match=message):
            check(cube(1.0), [X], jvp=lambda inputs, tangents: tangent)


def test_a_jvp_may_use_its_arrays_but_not_change_what_is_compared():
    def halved(inputs, tangents):
        (x,), (t,) = inputs, tangents
        t *= 3 * x * x
        x[:] = 0
        return 0.5 * t

    for times, right in ((1.0, True), (2.0, False)):
        report = checked(cube(1.0), [X], jvp=lambda inputs, tangents, times=times: 2 * times * halved(inputs, tangents))
        assert bool(report) == right, report


def largest(x):
    return x.max(), lambda dy: dy * (np.arange(x.size) == x.argmax())


def test_kinks_are_accepted_skipped_or_refused():
    for kinks in ("accept", "skip"):
        assert checked(largest, [np.ones(4)], kinks=kinks)
    assert [fault.kind for fault in checked(largest, [np.ones(4)], kinks="raise").faults] == ["kink"]
    for kinks in ("accept", "skip"):
        assert not checked(lambda x: (x.max(), lambda dy: dy * np.ones(4)), [np.ones(4)], kinks=kinks)


def test_the_rounding_of_a_function_may_vary_between_calls_as_far_as_allowed():
    calls = []

    def f(x):
        calls.append(None)
        return x + 1e-14 * (len(calls) % 2), lambda dy: dy

    assert "not deterministic" in [fault.kind for fault in checked(f, [X]).faults]
    assert not checked(f, [X], nondet_tol=1e-12).faults


def test_a_budget_names_what_it_left_out_and_none_never_looks_at_a_clock(monkeypatch):
    report = gradcheck(cube(1.0), [X], seed=0, budget=1e-9)
    assert report
    assert "the point 'strided dy'" in report.skipped
    monkeypatch.setattr("time.monotonic", lambda: pytest.fail("it looked at a clock"))
    assert not checked(cube(1.1), [X]).skipped


def test_a_seed_gives_the_same_report_and_none_another_one():
    assert checked(cube(1.1), [X]).to_json() == checked(cube(1.1), [X]).to_json()
    seeds = {gradcheck(cube(1.0), [X], fast_mode=True).seed for _ in range(3)}
    assert len(seeds) == 3


def test_ctrl_c_is_not_swallowed():
    def f(x):
        if np.iscomplexobj(x):
            raise KeyboardInterrupt
        return x, lambda dy: dy

    with pytest.raises(KeyboardInterrupt):
        checked(f, [X])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_low_precision_is_judged_in_float64_and_by_its_rounding(dtype):
    report = checked(cube(1.0), [X.astype(dtype)])
    assert report
    assert {"complex step", "rounding"} <= {verdict.method for verdict in report.pairs[0].verdicts}



def test_a_gradient_that_loses_digits_in_float32_is_wrong_by_its_rounding_alone():
    def lossy(x):                                   # what is added and subtracted takes most of its digits
        return x ** 3, lambda dy: ((3 * x * x + x.dtype.type(1e5)) - x.dtype.type(1e5)) * dy

    verdicts = {verdict.method: verdict.status for verdict in checked(lossy, [X.astype("float32")]).pairs[0].verdicts}
    assert (verdicts["complex step"], verdicts["rounding"]) == ("passed", "wrong")


# --- wrong use --------------------------------------------------------------------------------------------------------

def random(x):
    return x + np.random.default_rng().standard_normal(x.shape), lambda dy: dy


@pytest.mark.parametrize(("func", "options", "message"), [
    (lambda x: ([x], lambda dy: dy), {}, "returned a list of 1 as y; return an array"),
    (lambda x: ({"y": x}, lambda dy: dy), {}, "returned a dict as y; return an array"),
    (lambda x: (x, lambda dy: (dy, dy)), {}, "back returned a tuple of 2 for 1 input; return a gradient for each"),
    (lambda x: (x.argmax(0), lambda dy: 0 * x), {}, "f returned no floating array, so there is no gradient to check"),
    (lambda x: ((), lambda dy: dy), {}, "f returned no floating array, so there is no gradient to check"),
    (lambda x: (x.astype(object), lambda dy: dy), {}, "returned object; return floating arrays"),
    (lambda x: (x * np.nan, lambda dy: dy), {}, "returned NaN; check it at inputs where it is defined"),
    (random, {}, "random is random: two calls with the same inputs differ by .*; seed its generator"),
    (cube(1.0), {"eps": 0.0}, "eps is 0.0; give a positive step"),
    (cube(1.0), {"kinks": "allow"}, "kinks is 'allow'; give one of 'accept', 'skip', 'raise'"),
    (cube(1.0), {"names": ["a", "b"]}, r"names is \['a', 'b'\] for 1 input; give a list with one"),
    (cube(1.0), {"atol": -1.0}, "atol is -1.0; give a number that is not negative"),
    (cube(1.0), {"nondet_tol": np.nan}, "nondet_tol is nan; give a number that is not negative"),
    (cube(1.0), {"saved": True}, "saved=True belongs to backward=, which is not given; give the function that"),
    (product, {"backward": 1.0}, "backward is a float; give a function"),
    ("module:cube", {}, "func is a str; give a function"),
    (3, {}, "func is an int; give a function"),
    (cube(1.0), {"atol": "1e-5"}, "atol is '1e-5'; give a number that is not negative"),
    (cube(1.0), {"eps": "1e-6"}, "eps is '1e-6'; give a positive step"),
    (cube(1.0), {"methods": "fd"}, "there is no method 'fd'; the methods are complex step, "),
    (cube(1.0), {"methods": ["fd"]}, "there is no method 'fd'; the methods are complex step, "),
    (cube(1.0), {"backward": lambda dy, x: dy}, "returned y, back, but backward= is given, too; leave it out"),
    (lambda x: (x, 1.0), {"backward": lambda dy, x: dy, "saved": True}, "returned a tuple of 2; return y, saved"),
])
def test_wrong_use_is_refused_in_one_sentence(func, options, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        checked(func, [X], **options)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize(("x", "message"), [
    (X.astype(object), "x is object; give floating arrays"),
    (X + 0j, "x is complex128; give floating arrays: the real and the imaginary part are two inputs"),
    (X.astype(int), "no input is floating, so there is no gradient to check; convert one"),
    ("text", "x is <U4; give floating arrays"),
])
def test_inputs_that_have_no_gradient_are_refused(x, message):
    with pytest.raises(TypeError, match=message):
        checked(lambda x: (x, lambda dy: dy), [x])


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_what_is_not_a_seed_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed is {seed!r}; give an integer that is not negative"):
        gradcheck(cube(1.0), [X], seed=seed)


def test_inputs_of_one_name_are_refused():
    """Both would be one line of the report, and one of them not be judged."""
    with pytest.raises(ValueError, match="two inputs have the name 'a'; give each another name"):
        checked(lambda x, y: (x * y, lambda dy: (dy * y, 2 * dy * x)), [X, X], names=["a", "a"])
    with pytest.raises(ValueError, match=r"two inputs have the name .p at a\.b.; give each another name or key"):
        checked(lambda p: (p["a.b"], lambda dy: {"a.b": dy}), [{"a.b": X, "a": {"b": X}}])


def test_an_array_as_the_gradient_of_a_tree_is_refused():
    with pytest.raises(TypeError, match="back returned an array as the gradient of p, which is a list of 2"):
        checked(lambda p: (p[0] * p[1], lambda dy: np.full(2, dy)), [[2.0, 3.0]])


# --- import -----------------------------------------------------------------------------------------------------------

def test_importing_it_loads_no_third_party_package_but_numpy():
    code = ("import sys; before = {name.partition('.')[0] for name in sys.modules}; import numpy; "
            "from pyllama.testing import gradcheck; "
            "print(*sorted({name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names)), "
            "any(name.startswith('pyllama.ops') for name in sys.modules))")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = [name for name in output.split() if "cython" not in name]               # numpy.random's own
    assert names == ["numpy", "pyllama", "False"]


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), "2"])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck, check_grads, check_partials])
def test_a_budget_without_time_is_refused(check, budget):
    with pytest.raises(ValueError, match="give a positive number of seconds, or None for no limit"):
        check(cube(1.0), {"x": X} if check is check_partials else [X], budget=budget)


def test_a_tuple_within_the_outputs_is_no_array():
    with pytest.raises(TypeError, match=r"returned a tuple of 1 as output 1; .* give saved=True"):
        gradcheck(lambda x: (x * x, (x,)), [X], backward=lambda dy, x: 2 * x * dy)


def test_a_back_that_takes_each_dy_is_said_to_get_one_tuple():
    with pytest.raises(TypeError, match=r"back cannot be called as back\(dy\): .*'db'; dy is one tuple.* d0, d1 = dy"):
        gradcheck(lambda x: ((x, 2 * x), lambda da, db: da + 2 * db), [X])
