"""Somebody else's kernel beside our op: which property finds which bug, how arguments are passed, what is printed."""
import contextlib
import importlib.util
import inspect
import io
import json
import re
import sys

import numpy as np
import pytest

from pyllama import backend
from pyllama.cli import main
from pyllama.op import OPS, op
from pyllama.ops import attention, dropout, linear, lstm_cell, rms_norm, softmax, tanh
from pyllama.testing import verify as verifying
from pyllama.testing.catalogue import bugs
from pyllama.testing.verify import verify
from pyllama.testing.verify.adapter import Adapter


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
    for seed in range(20):
        found = verify(norm, rms_norm, seed=seed)
        assert found, str(found)
        assert {p.name: p.verdict for p in found.properties} == dict.fromkeys(
            ["values", "gradients", "sizes", "empty", "options", "layouts", "dtypes", "aliasing"], "right") | {
            "groups": "not tried"}
        assert found["dtypes"].share <= 1


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_our_own_ops_are_right(name, dtype):
    """Forward and backward of the reference, and the op on its kernels."""
    one = OPS[name]
    for found in (verify(one.forward, one, one.backward, saved=True, dtype=dtype, seed=1),
                  verify(one, one, dtype=dtype, seed=2)):
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


LAST = {}


def state_of_the_last_call(x, w, *, eps=1e-5):
    y, LAST["back"] = norm(x, w, eps=eps)
    return y, lambda dy: LAST["back"](dy)


EVERYTHING = {"values", "gradients", "sizes", "options", "layouts", "dtypes"}


@pytest.mark.parametrize(("kernel", "properties"), [
    (with_values(lambda y, x, w, eps: y * 1.01), {"values", "sizes", "options", "layouts", "dtypes"}),
    (with_gradients(lambda back, dy, x, w: (back(dy)[0], back(dy)[1] * 2)), EVERYTHING - {"values"}),
    (with_gradients(tail_is_lost), {"sizes"}),
    (with_values(empty_fails), {"empty"}),
    (with_values(lambda y, x, w, eps: norm(x, w)[0]), {"options", "layouts"}),
    (with_gradients(read_as_contiguous), {"layouts"}),
    (with_values(always_float64), {"dtypes"}),
    (scaled_in_place, {"aliasing"}),
    (with_gradients(dy_scaled_in_place), {"aliasing"}),
    (with_values(one_buffer), {"aliasing"}),
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
    assert verify(lambda q, k, v: attention(q, k, v), attention, seed=0)["groups"].verdict == "right"


@pytest.mark.parametrize("bug", bugs(), ids=str)
def test_every_bug_of_the_catalogue_is_found(bug, tmp_path, monkeypatch):
    monkeypatch.setattr(verifying, "SECONDS", 0.0)
    one = OPS[bug.op]
    module = sys.modules[one.module]
    source = inspect.getsource(module)
    function = inspect.getsource(getattr(module, bug.function))
    path = tmp_path / "planted.py"
    path.write_text(source.replace(function, function.replace(bug.before, bug.after)), "utf-8")
    spec = importlib.util.spec_from_file_location("planted", path)
    planted = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("pyllama.op.OPS", OPS.copy())
    spec.loader.exec_module(planted)
    assert not verify(planted.forward, one, planted.backward, saved=True, seed=0, problems=60), bug.cause


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


def test_the_inequality_has_both_numbers():
    found = verify(lambda x: np.tanh(x) + 1, tanh, seed=0)
    assert found["values"].mistake.sentence == "y[0] is 1, tanh has 0: |difference| 1 > 1e-10"
    assert found["gradients"].verdict == "not tried"


@pytest.mark.parametrize(("kernel", "notes"), [
    (lambda x, w: linear(x, w), ["b"]), (lambda x, w, b=None: linear(x, w, b), []),
    (lambda x, w, bias=None: linear(x, w, bias), []), (lambda x, w, *b: linear(x, w, *b), []),
    (lambda x, w, **b: linear(x, w), ["b"]), (lambda x, w, /, transposed=False: linear(x, w), ["b"]),
    (lambda x, w, *, b: linear(x, w, b), [])])
def test_an_optional_input_goes_to_the_parameter_that_may_be_its(kernel, notes):
    found = verify(kernel, linear, seed=0)
    assert found, str(found)
    assert [note.partition(":")[0] for note in found.notes] == notes


def test_optional_inputs_in_the_middle_may_be_left_out():
    def biased(q, k, v, *, bias=None, causal=False):
        y, back = attention(q, k, v, bias=bias, causal=causal)
        return y, lambda dy: [g for i, g in enumerate(back(dy)) if i not in (3, 4)]

    found = verify(biased, attention, seed=0)
    assert found, str(found)
    assert [note.partition(":")[0] for note in found.notes] == ["mask", "segments", "window", "scale", "softcap"]


def test_options_are_renamed_fixed_or_left_at_their_default():
    def epsilon(x, w, epsilon=1e-6):
        return norm(x, w, eps=epsilon)

    assert verify(epsilon, rms_norm, rename={"eps": "epsilon"}, seed=0)
    found = verify(epsilon, rms_norm, seed=0)
    assert found.notes == ("eps: epsilon has no parameter of this name, so rms_norm uses 1e-05",)
    assert "values" in wrong(found)
    assert verify(epsilon, rms_norm, fix={"eps": 1e-6}, seed=0)
    assert verify(lambda x: dropout(x, rate=0.5, key=(1,)), dropout, fix={"rate": 0.5, "key": (1,)}, seed=0)


def forward_with_saved(x, w, eps=1e-5):
    y, saved = rms_norm.forward(x, w, eps=eps)
    return y, list(saved)


def backward_of_inputs(dy, x, w, eps=1e-5):
    return norm(x, w, eps=eps)[1](dy)


@pytest.mark.parametrize(("kernel", "backward", "saved"), [
    (lambda x, w, eps=1e-5: norm(x, w, eps=eps)[0], backward_of_inputs, False),
    (forward_with_saved, rms_norm.backward, True)])
def test_the_backward_pass_may_be_a_function_of_its_own(kernel, backward, saved):
    found = verify(kernel, rms_norm, backward, saved=saved, seed=0)
    assert found, str(found)
    assert found["gradients"].verdict == "right"
    doubled = verify(kernel, rms_norm, lambda dy, *rest, **options: [2 * g for g in backward(dy, *rest, **options)],
                     saved=saved, seed=0)
    assert doubled["gradients"].mistake.what == "dx"
    assert ("y, saved = f(" if saved else "backward(dy, x, w") in doubled["gradients"].case


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
    (lambda x: x, "<lambda> takes 1 argument by position, but rms_norm passes x, w; let it take these"),
    (lambda x, w, n: x, "<lambda> needs n, which rms_norm does not pass; give it a default value, or say which option "
                        "it is with rename"),
    (lambda x, w, *, n: x, "<lambda> needs n, which rms_norm does not pass; give it a default value, or say which "
                           "option it is with rename")])
def test_a_function_that_cannot_be_called_so_is_one_sentence(kernel, sentence):
    with pytest.raises((TypeError, ValueError)) as error:
        verify(kernel, rms_norm)
    assert str(error.value) == sentence


@pytest.mark.parametrize(("options", "sentence"), [
    ({"saved": True}, "saved is for a backward pass that takes what the forward pass saved; give backward, too"),
    ({"fix": {"epsilon": 1}}, "rms_norm has no option 'epsilon'; it has eps"),
    ({"rename": {"b": "bias"}}, "rms_norm has no option or optional input 'b'; it has eps"),
    ({"dtype": "float16"}, "dtype is 'float16'; it must be 'float32' or 'float64'")])
def test_a_wrong_argument_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        verify(norm, rms_norm, **options)


def test_an_option_without_a_default_must_be_known(monkeypatch):
    monkeypatch.setattr("pyllama.op.OPS", OPS.copy())
    scaled = op("x[N] -> y[N]", lambda x, *, by: (x * by, ()), lambda dy, *, by: (dy * by,), name="scaled", by=[2, 3])
    assert verify(lambda x, by: (x * by, lambda dy: dy * by), scaled, seed=0)
    assert verify(lambda x: (x * 3, lambda dy: dy * 3), scaled, fix={"by": 3}, seed=0)
    with pytest.raises(ValueError, match="^<lambda> has no parameter 'by', which scaled needs; add it, or give its"):
        verify(lambda x: x, scaled)


@pytest.mark.parametrize(("kernel", "sentence"), [
    (lambda x: None, "y is object; return a floating array"),
    (lambda x: x.sum(), "y has the shape (), that of softmax is"),
    (lambda x: [][0], "<lambda> raised IndexError: list index out of range"),
    (lambda x: (softmax(x)[0], lambda dy: (None,)), "the backward pass of <lambda> returns no gradient of x"),
    (lambda x: (softmax(x)[0], lambda dy: ()), "the backward pass of <lambda> returns 0 gradients for 1 input")])
def test_results_of_another_form_are_named(kernel, sentence):
    found = verify(kernel, softmax, seed=0)
    mistakes = [p.mistake.sentence for p in found.properties if p.mistake]
    assert any(m.startswith(sentence) for m in mistakes), mistakes


def test_the_same_seed_finds_the_same_and_a_new_seed_is_reported():
    kernel = with_gradients(tail_is_lost)
    assert verify(kernel, rms_norm, seed=5).to_json() == verify(kernel, rms_norm, seed=5).to_json()
    assert verify(norm, rms_norm).seed != verify(norm, rms_norm).seed


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


MINE = '''
import numpy as np
def norm(x, w, *, eps=1e-5):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    return x * r * w
def backward(dy, x, w, *, eps=1e-5):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    g = dy * w
    return r * g - x * r ** 3 * (g * x).mean(-1, keepdims=True), (dy * x * r).sum(tuple(range(dy.ndim - 1)))
def wrong(dy, x, w, *, eps=1e-5):
    return backward(dy, x, np.ones_like(w), eps=eps)
def other(x, w, epsilon=1e-3):
    return norm(x, w, eps=epsilon)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_kernel.py").write_text(MINE)


def call(capsys, *argv):
    return main([str(word) for word in argv]), *capsys.readouterr()


def test_the_command_prints_the_table_and_the_counterexample(mine, capsys, tmp_path):
    words = ["verify", "my_kernel.py:norm", "--op", "rms_norm", "--seed", 4]
    code, out, err = call(capsys, *words, "--backward", "my_kernel.py:backward")
    assert (code, err) == (0, "")
    assert "nothing is wrong" in out
    code, out, _ = call(capsys, *words, "--backward", "my_kernel.py:wrong", "--only_wrong", "--json", "found.json")
    assert code == 1
    assert "gradients" in out
    assert "values" not in out
    assert "\n    f = find('my_kernel.py:norm')\n    backward = find('my_kernel.py:wrong')\n" in out
    saved = json.loads((tmp_path / "found.json").read_text())
    assert (saved["right"], saved["seed"]) == (False, 4)
    assert {p["name"]: p["verdict"] for p in saved["properties"]}["gradients"] == "wrong"
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert "not tried  the function returns y alone; give its backward pass" in out


def test_the_command_takes_options_by_other_names(mine, capsys):
    words = ["verify", "my_kernel.py:other", "--op", "rms_norm"]
    assert call(capsys, *words, "--rename", "eps=epsilon")[0] == 0
    assert call(capsys, *words, "--fix", "eps=1e-3")[0] == 0
    assert call(capsys, *words)[0] == 1


@pytest.mark.parametrize(("words", "sentence"), [
    (["my_kernel.py:norm", "--op", "rmsnorm"], "there is no op 'rmsnorm'; did you mean rms_norm?"),
    (["my_kernel.py:nrm", "--op", "rms_norm"], "my_kernel has no 'nrm'; did you mean norm?"),
    (["my_kernel.py:norm", "--op", "my_kernel.py:norm"], "my_kernel.py:norm is not an op; name one of pyllama, or one "
                                                         "that pyllama.op.op() made"),
    (["my_kernel.py:norm", "--op", "softmax"], "norm needs w, which softmax does not pass; give it a default value, or "
                                               "say which option it is with rename"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--fix", "eps"], "--fix is 'eps'; write NAME=VALUE"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--fix", "eps=small"],
     "--fix eps is 'small'; write a number, True, None or a string in quotes"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--problems", "0"], "problems is 0; it must be at least 1"),
    (["my_kernel.py:norm"], "verify needs --op (op to compare with); see `pyllama verify --help`"),
])
def test_wrong_use_of_the_command_is_one_sentence(mine, capsys, words, sentence):
    code, out, err = call(capsys, "verify", *words)
    assert (code, out) == (2, "")
    assert " ".join(err.split()) == f"pyllama: {sentence}"


def test_the_adapter_passes_by_keyword_what_has_a_name():
    seen = {}

    def f(q, k, v, bias=None, *, causal=False):
        seen.update(bias=bias, causal=causal)
        return q

    adapter = Adapter(f, attention)
    adapter(1, 2, 3, 4, causal=True, window=5)
    assert seen == {"bias": 4, "causal": True}
