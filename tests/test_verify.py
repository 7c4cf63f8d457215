"""Somebody else's kernel beside our op: which property finds which bug, how arguments are passed, what is printed."""
import contextlib
import io
import re

import numpy as np
import pytest

from pyllama import backend
from pyllama.op import OPS, op
from pyllama.ops import attention, lstm_cell, rms_norm, softmax, swiglu, tanh
from pyllama.testing import verify as verifying
from pyllama.testing.dojo import exercises
from pyllama.testing.verify import verify


def norm(x, w, *, eps=1e-5):
    """rms_norm as somebody else may have written it."""
    r = 1 / np.sqrt((x ** 2).mean(-1, keepdims=True) + x.dtype.type(eps))

    def back(dy):
        g = dy * w
        rows = tuple(range(dy.ndim - 1))
        return r * g - x * r ** 3 * (g * x).mean(-1, keepdims=True), (dy * x * r).sum(rows)

    return x * r * w, back


def wrong(found):
    return {p.name for p in found.properties if p.verdict == "wrong"}


def test_a_right_kernel_is_right_in_every_property_that_the_op_has():
    for seed in range(4):
        found = verify(norm, rms_norm, seed=seed)
        assert found, str(found)
        assert {p.name: p.verdict for p in found.properties} == dict.fromkeys(
            [*EVERYTHING, "empty", "aliasing"], "right") | {"groups": "not tried"}
        assert found["dtypes"].share <= 1


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_our_own_ops_are_right(name, dtype):
    """Forward and backward of the reference, and the op on its kernels."""
    one = OPS[name]
    for found in (verify(one.forward, one, one.backward, saved=True, dtype=dtype, seed=1, problems=8),
                  verify(one, one, dtype=dtype, seed=2, problems=16)):
        assert found, str(found)
        assert not any(p.refused for p in found.properties)
        assert not found.notes


def with_values(change):
    """norm, whose y is changed."""
    def f(x, w, *, eps=1e-5):
        y, back = norm(x, w, eps=eps)
        return change(y, x, w, eps), back
    return f


def with_gradients(change):
    """norm, whose gradients are changed."""
    def f(x, w, *, eps=1e-5):
        y, back = norm(x, w, eps=eps)
        return y, lambda dy: change(back, dy, x, w)
    return f


def tail_is_lost(back, dy, x, w):
    dx, dw = back(dy)
    dx[..., 64:] = 0
    return dx, dw


def empty_fails(y, x, w, eps):
    return y if x.size else y + 1 // x.size


def read_as_contiguous(back, dy, x, w):
    """dy's memory in the order of its addresses."""
    flat = np.lib.stride_tricks.as_strided(dy, (dy.size,), (min(map(abs, dy.strides), default=8),)) if dy.size > 1 \
        and dy.ndim and not dy.flags.c_contiguous and min(dy.strides) > 0 else dy
    return back(flat.reshape(dy.shape))


def always_float64(y, x, w, eps):
    return norm(x.astype("float64"), w.astype("float64"), eps=eps)[0]


def scaled_in_place(x, w, *, eps=1e-5):
    y, back = norm(x.copy(), w, eps=eps)
    x[...] = y
    return y, back


def dy_scaled_in_place(back, dy, x, w):
    grads = back(dy.copy())
    dy *= 2
    return grads


BUFFER = {}


def one_buffer(y, x, w, eps):
    buffer = BUFFER.setdefault((y.shape, y.dtype), np.empty_like(y))
    buffer[...] = y
    return buffer


def one_gradient(back, dy, x, w):
    buffer = BUFFER.setdefault(("dx", x.shape, x.dtype), np.empty_like(x))
    buffer[...], dw = back(dy)
    return buffer, dw


LAST = {}


def state_of_the_last_call(x, w, *, eps=1e-5):
    y, LAST["back"] = norm(x, w, eps=eps)
    return y, lambda dy: LAST["back"](dy)


EVERYTHING = {"values", "gradients", "sizes", "options", "layouts", "dtypes", "scales"}


@pytest.mark.parametrize(("kernel", "properties"), [
    (with_values(lambda y, x, w, eps: y * 1.01), EVERYTHING - {"gradients"}),
    (with_gradients(lambda back, dy, x, w: (back(dy)[0], back(dy)[1] * 2)), EVERYTHING - {"values"}),
    (with_gradients(tail_is_lost), {"sizes"}),
    (with_values(empty_fails), {"empty"}),
    (with_values(lambda y, x, w, eps: norm(x, w)[0]), {"options"}),
    (with_gradients(read_as_contiguous), {"layouts"}),
    (with_values(always_float64), {"dtypes"}),
    (scaled_in_place, {"aliasing"}),
    (with_gradients(dy_scaled_in_place), {"aliasing"}),
    (with_values(one_buffer), {"aliasing"}),
    (with_gradients(one_gradient), {"aliasing"}),
    (state_of_the_last_call, {"aliasing"}),
    (with_gradients(lambda back, dy, x, w: (x, back(dy)[1])), EVERYTHING - {"values"} | {"aliasing"}),
])
def test_each_bug_is_found_by_its_properties_and_by_no_other(kernel, properties):
    found = verify(kernel, rms_norm, seed=3, problems=30)
    assert wrong(found) == properties, str(found)
    assert not found


def grouped_wrongly(q, k, v):
    """The keys of the groups in another order."""
    y, back = attention(q, k[:, ::-1], v)
    return y, lambda dy: [g[:, ::-1] if i == 1 else g for i, g in enumerate(back(dy))]


def test_heads_that_are_grouped_wrongly_are_found():
    found = verify(grouped_wrongly, attention, seed=0)
    assert "groups" in wrong(found)
    assert found["groups"].mistake.what == "y"
    assert verify(lambda q, k, v: attention(q, k, v), attention, seed=0, problems=5)["groups"].verdict == "right"


@pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: str(exercise.bug))
def test_every_bug_of_the_catalogue_is_found(exercise, monkeypatch):
    monkeypatch.setattr(verifying, "ATTEMPTS", 0)
    passes, right = exercise.given, OPS[exercise.bug.op]
    assert not all(verify(passes["forward"], right, passes["backward"], saved=True, seed=0, problems=problems)
                   for problems in (1, 16))                 # most bugs need no more than one


def test_a_counterexample_is_small_runs_and_shows_both():
    found = verify(with_gradients(tail_is_lost), rms_norm, seed=3, name="tests.test_verify:TAIL")
    case = found["sizes"].case
    printed = io.StringIO()
    names = {}
    with contextlib.redirect_stdout(printed):
        exec(case, names)
    theirs, ours = printed.getvalue().split("\n(", 1)
    assert theirs != f"({ours}"
    assert names["x"].shape == (65,), "the smallest D at which the tail is lost"
    assert set(names["x"]) | set(names["w"]) | set(names["dy"]) <= {0, 1, 2}


TAIL = with_gradients(tail_is_lost)
WITH_ONE_BUFFER = with_gradients(one_gradient)


def test_what_is_wrong_only_at_large_inputs_is_found():
    def without_max(x):
        e = np.exp(x)
        y = e / e.sum(-1, keepdims=True)
        return y, lambda dy: y * (dy - (dy * y).sum(-1, keepdims=True))

    def flushed(x):
        return tanh(x if np.abs(x).max(initial=0) > 1e-4 else 0 * x)

    found = verify(without_max, softmax, seed=0)
    assert wrong(found) == {"scales"}
    assert "is nan" in found["scales"].mistake.sentence
    assert wrong(verify(flushed, tanh, seed=0)) == {"scales"}


def gated(g, u):
    """swiglu, which rounds elsewhere."""
    s, rest = np.exp(-np.logaddexp(0, -g)), np.exp(-np.logaddexp(0, g))
    return g * s * u, lambda dy: (dy * u * s * (1 + g * rest), dy * g * s)


def test_a_right_kernel_that_rounds_elsewhere_is_right_at_every_scale():
    for seed in range(3):
        found = verify(gated, swiglu, seed=seed, problems=40)
        assert found["scales"].verdict == "right", str(found)


def test_rounding_a_large_input_is_no_mistake(monkeypatch):
    monkeypatch.setattr("pyllama.op.OPS", OPS.copy())
    sine = op("x[N] -> y[N]", lambda x: (np.sin(x), (x,)), lambda dy, x: (np.cos(x) * dy,))

    def reduced(x):
        r = np.fmod(x, x.dtype.type(2 * np.pi))             # 2π is rounded
        return np.sin(r), lambda dy: np.cos(r) * dy

    assert verify(reduced, sine, seed=0)["scales"].verdict == "right"
    assert verify(lambda x: (np.sin(x * (1 + 1e-9)), lambda dy: np.cos(x) * dy), sine, seed=0)["scales"].mistake


def test_a_scale_at_which_the_op_overflows_in_float32_is_not_judged(monkeypatch):
    monkeypatch.setattr("pyllama.op.OPS", OPS.copy())

    def forward(x):
        return x ** 10 / (1 + x ** 10), (x,)                # at 1e4 in float32 ∞ / ∞

    def backward(dy, x):
        return (10 * x ** 9 / (1 + x ** 10) ** 2 * dy,)

    share = op("x[N] -> y[N]", forward, backward)
    found = verify(forward, share, backward, saved=True, seed=0, problems=10)
    assert found, str(found)
    assert 0 < found["scales"].calls < 10


def test_a_gradient_that_a_later_call_overwrites_is_shown_by_its_case():
    found = verify(WITH_ONE_BUFFER, rms_norm, seed=0, problems=1, name="tests.test_verify:WITH_ONE_BUFFER")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found["aliasing"].case, {})
    first, second = printed.getvalue().splitlines()
    assert first != second


def test_without_a_backward_pass_it_says_that_only_values_were_compared():
    found = verify(lambda x, w, eps=1e-5: norm(x, w, eps=eps)[0], rms_norm, seed=0, problems=2)
    assert found
    assert str(found).endswith("nothing is wrong with the values; no gradient was compared")
    assert str(verify(norm, rms_norm, seed=0, problems=2)).endswith("\nnothing is wrong")


def test_what_the_backward_pass_changes_is_named_once():
    found = verify(with_gradients(dy_scaled_in_place), rms_norm, seed=0, problems=1)
    assert "<locals>" not in found["aliasing"].mistake.sentence
    assert found["aliasing"].mistake.sentence == "the backward pass of f changes dy; work on a copy"


def test_the_inequality_has_both_numbers():
    found = verify(lambda x: np.tanh(x) + 1, tanh, seed=0)
    assert re.fullmatch(r"y\[0\] is 1, tanh has 0: \|difference\| 1 > \S+e-\d+", found["values"].mistake.sentence)
    assert found["gradients"].verdict == "not tried"


def test_several_outputs_and_integer_inputs():
    assert verify(lambda a, c: lstm_cell(a, c), lstm_cell, seed=0)
    swapped = verify(lambda a, c: (lstm_cell(a, c)[0][::-1], lstm_cell(a, c)[1]), lstm_cell, seed=0)
    assert swapped["values"].mistake.what == "h"
    embedding = OPS["embedding"]

    def lookup(ids, w):
        def back(dy):
            dw = np.zeros_like(w)
            dw[ids] += dy                                   # an id that occurs twice counts once
            return dw
        return w[ids], back

    found = verify(lookup, embedding, seed=0)
    assert wrong(found) >= {"gradients"}
    assert found["values"].verdict == "right"
    assert "ids = np.array([[0, 0" in found["gradients"].case


def test_a_kernel_may_refuse_what_it_does_not_support_but_not_ordinary_arrays():
    def contiguous_float64(x, w, *, eps=1e-5):
        if x.dtype != np.float64 or not x.flags.c_contiguous or not x.size:
            raise ValueError("give contiguous float64")
        return norm(x, w, eps=eps)

    found = verify(contiguous_float64, rms_norm, seed=0)
    assert found, str(found)
    assert 0 < found["layouts"].refused < found["layouts"].calls
    assert found["dtypes"].refused == 10
    assert found["dtypes"].note == "contiguous_float64 raised ValueError: give contiguous float64"
    assert found["empty"].verdict == "right" or found["empty"].refused
    assert wrong(verify(contiguous_float64, rms_norm, seed=0, dtype="float32")) >= {"values", "gradients", "sizes"}


@pytest.mark.parametrize(("kernel", "sentence"), [
    (lambda x: None, "y is object; return a floating array"),
    (lambda x: x.sum(), "y has the shape (), softmax has"),
    (lambda x: [][0], "<lambda> raised IndexError: list index out of range"),
    (lambda x: (softmax(x)[0], lambda dy: (None,)), "the backward pass of <lambda> returns no gradient of x"),
    (lambda x: (softmax(x)[0], lambda dy: ()), "the backward pass of <lambda> returns 0 gradients for 1 input")])
def test_results_of_another_form_are_named(kernel, sentence):
    found = verify(kernel, softmax, seed=0)
    mistakes = [p.mistake.sentence for p in found.properties if p.mistake]
    assert any(m.startswith(sentence) for m in mistakes), mistakes


def test_the_same_seed_finds_the_same_and_a_new_seed_is_reported():
    kernel = with_gradients(tail_is_lost)
    first, second = (verify(kernel, rms_norm, seed=5, problems=5).to_json() for _ in range(2))
    assert first == second
    assert verify(norm, rms_norm, problems=1).seed != verify(norm, rms_norm, problems=1).seed


def test_an_op_of_the_user_is_a_reference_too(monkeypatch):
    monkeypatch.setattr("pyllama.op.OPS", OPS.copy())

    def forward(x):
        return x * x, (x,)

    square = op("x[N] -> y[N]", forward, lambda dy, x: (2 * x * dy,))
    assert verify(lambda x: (x ** 2, lambda dy: 2 * x * dy), square, seed=0)
    found = verify(lambda x: (x ** 2, lambda dy: x * dy), square, seed=0)
    assert f"OPS[{square.name!r}](x)" in found["gradients"].case


def test_the_kernels_of_the_op_do_not_judge(monkeypatch):
    """The reference is the NumPy function, whatever the C kernel says."""
    if backend.cpu is None:
        pytest.skip("no C kernels here")
    monkeypatch.setattr(backend.cpu, "rms_norm", lambda x, w, eps=1e-5: (2 * x, (x, w, x)), raising=False)
    assert verify(norm, rms_norm, seed=0)


def test_calls_that_the_reference_cannot_judge_are_not_right(monkeypatch):
    monkeypatch.setattr("pyllama.op.OPS", OPS.copy())

    def forward(x):
        return np.log(-1 - x * x), (x,)

    nowhere = op("x[N] -> y[N]", forward, lambda dy, x: (dy,))
    found = verify(lambda x: x + 0, nowhere, seed=0)
    assert not found
    assert str(found).endswith("nothing could be judged")
    assert found["values"].note == "the op is not defined for any of the random inputs"
