"""The table over a model's parameters: all of ours are right, and a planted bug spoils those behind it."""
import functools

import numpy as np
import pytest

import pyllama
from pyllama import params
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.testing import check_partials

IDS = np.random.default_rng(1).integers(0, 19, (2, 6))
LABELS = np.where(np.arange(12).reshape(2, 6) == 2, -100, IDS)
CLASSES = np.array([1, 0])
MODELS_TO_CHECK = {"llama": ("lm", LABELS), "gpt2": ("lm", LABELS), "bert": ("masked_lm", LABELS),
                   "bart": ("seq2seq", LABELS[:, 1:]), "lstm": ("classification", CLASSES)}


def small(kind):
    head, labels = MODELS_TO_CHECK[kind]
    config = MODELS[kind].config.small(Dimensions(vocab_size=19, context=7, head=head, width=12, heads=3,
                                                  layers=1 + (kind == "llama"), hidden=20, dropout=0.0))
    p = config.model.init(config, seed=0, dtype="float64")
    rng = np.random.default_rng(2)                      # biases of zero and weights of one would hide mistakes
    p = params.rebuild(p, (x + 0.3 * rng.standard_normal(x.shape) for _, x in params.leaves(p)))
    return functools.partial(loss, config, labels), p


def loss(config, labels, p):
    return config.model.loss(IDS, labels, p, config)


@pytest.mark.parametrize("kind", MODELS_TO_CHECK)
def test_every_parameter_of_our_models_is_right(kind):
    f, p = small(kind)
    report = check_partials(f, p, seed=0, entries=2, budget=None)
    assert report, str(report)
    assert {pair.worst.method for pair in report.pairs} == {"complex step"}
    assert {pair.input for pair in report.pairs} == {name for name, _ in params.leaves(p)}
    assert report.skipped == ()


def off_by_a_factor(back):
    return lambda dy: [None if dx is None else 2 * dx for dx in back(dy)]


PLANTED = {                                             # op, what is wrong in LLaMA, what is right
    "swiglu": (["gate_proj", "up_proj", "layers.0.self_attn"], ["model.norm.weight", "layers.1.mlp.down_proj"]),
    "attention": (["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj", "layers.0"],
                  ["layers.1.self_attn.o_proj", "layers.1.mlp", "model.norm.weight"])}


@pytest.mark.parametrize("name", PLANTED)
def test_a_bug_in_one_op_names_the_parameters_that_it_spoils(name):
    from pyllama.op import watching

    def doubled(op, call, inputs, options):
        y, back = call(*inputs, **options)
        return y, off_by_a_factor(back) if op.name == name else back

    f, p = small("llama")
    with watching(doubled):
        report = check_partials(f, p, seed=0, entries=2, budget=None)
    assert not report
    wrong = [pair.input for pair in report.pairs if pair.wrong]
    right = [pair.input for pair in report.pairs if not pair.wrong]
    spoiled, spared = PLANTED[name]
    assert all(any(part in name for name in wrong) for part in spoiled)
    assert not any(part in name for name in wrong for part in spared)
    assert all(any(part in name for name in right) for part in spared)
    assert [pair.wrong for pair in report.pairs] == sorted((pair.wrong for pair in report.pairs), reverse=True)
    lines = str(report).split("\n\n")[1].splitlines()[2:]
    assert [line.startswith("* ") for line in lines] == [pair.wrong for pair in report.pairs]        # the worst first


def two(p):
    error = np.sum(p["a"]["w"] * np.array([1.0, 2.0])) + p["b"][0]
    return error ** 2, error


def right(p):
    value, error = two(p)
    return value, lambda dy: {"a": {"w": 2 * dy * error * np.array([1.0, 2.0])}, "b": [2 * dy * error]}


P = {"a": {"w": np.array([0.5, -1.0])}, "b": [np.array(0.25)]}


def test_the_mistake_in_a_parameter_is_named():
    def wrong(p):
        value, back = right(p)
        return value, lambda dy: back(dy) | {"a": {"w": -back(dy)["a"]["w"]}}

    report = check_partials(wrong, P, seed=1)
    first, second = report.pairs
    assert (first.input, first.wrong, second.input, second.wrong) == ("a.w", True, "b.0", False)
    assert first.diagnoses[0].startswith("Wrong sign")


def test_one_wrong_entry_of_many_is_found_and_located():
    """A random direction sees it, and the entries with the largest gradient are looked at one by one."""
    def wrong(p):
        value, back = right(p)
        return value, lambda dy: back(dy) | {"a": {"w": back(dy)["a"]["w"] * np.array([1.0, 3.0])}}

    first, _ = check_partials(wrong, P, seed=1, entries=1).pairs
    assert first.index == (1,)


def test_back_may_take_no_argument_and_parameters_may_be_float32():
    def f(p):
        value, back = right(p)
        return value, lambda: back(1.0)

    assert check_partials(f, params.rebuild(P, (x.astype("float32") for _, x in params.leaves(P))), seed=0)


@pytest.mark.parametrize("form", [list, tuple])
def test_parameters_may_be_a_list_and_have_integers_among_them(form):
    def f(times):
        return lambda p: ((p[0] ** 2).sum() + p[1].sum(),
                          lambda: form([2 * p[0], times * np.ones(2), None]))

    p = form([np.ones(3), np.ones(2), np.arange(2)])
    assert check_partials(f(1.0), p, seed=0)
    assert [pair.input for pair in check_partials(f(2.0), p, seed=0).pairs if pair.wrong] == ["1"]


def test_a_loss_that_is_not_holomorphic_is_checked_by_differences():
    def f(times):
        return lambda p: (np.abs(p["w"]).sum(), lambda dy: {"w": times * dy * np.sign(p["w"])})

    report = check_partials(f(1.0), {"w": np.array([1.0, -2.0])}, seed=0)
    assert report
    assert report.pairs[0].verdicts[0].method == "differences"
    assert not check_partials(f(1.001), {"w": np.array([1.0, -2.0])}, seed=0)


@pytest.mark.parametrize(("slope", "status"), [(0.0, "passed"), (0.4, "passed"), (1.0, "passed"), (1.01, "wrong"),
                                               (-0.01, "wrong"), (2.0, "wrong")])
@pytest.mark.parametrize("size", [1, 3])
def test_every_subgradient_is_right_at_a_kink_and_nothing_else(slope, status, size):
    def f(p):
        w = p["w"]
        return np.maximum(w, 0).sum(), lambda dy: {"w": dy * np.where(w == 0, slope, w > 0)}

    for seed in range(5):
        report = check_partials(f, {"w": np.append(np.zeros(size), [1.0, -2.0])}, seed=seed)
        assert report.pairs[0].worst.status == status, str(report)
        assert bool(report) == (status == "passed")


def test_at_a_kink_the_entry_that_is_wrong_is_named():
    """Entry 1 has the slope 2 at its kink; entry 0 has a right one at its own."""
    def f(p):
        w = p["w"]
        return np.abs(w).sum(), lambda dy: {"w": dy * np.array([0.5, 2.0, 1.0, 1.0])}

    report = check_partials(f, {"w": np.array([0.0, 0.0, 3.0, 4.0])}, seed=0)
    assert not report
    assert report.pairs[0].index == (1,)


def test_a_budget_names_what_it_left_out():
    report = check_partials(right, P, seed=0, budget=1e-9)
    assert report.skipped == ("a.w", "b.0")
    assert {pair.worst.status for pair in report.pairs} == {"undecided"}
    assert not report                                   # what nobody looked at is not right


def test_a_model_is_checked_with_its_loss():
    model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    report = check_partials(model, IDS, LABELS, seed=0, entries=1, budget=None)
    assert report, str(report)
    assert {x.dtype for _, x in params.leaves(model.params)} == {np.dtype("float32")}
    assert len(report.pairs) == len([*params.leaves(model.params)])


def test_the_same_seed_gives_the_same_report():
    assert str(check_partials(right, P, seed=3)) == str(check_partials(right, P, seed=3))
    assert check_partials(right, P).seed != check_partials(right, P).seed


@pytest.mark.parametrize(("f", "message"), [
    (lambda p: 1.0, "value, back"), (lambda p: (np.ones(2), lambda dy: p), "one number")])
def test_wrong_use_is_one_sentence(f, message):
    with pytest.raises(TypeError, match=message):
        check_partials(f, P)


def test_parameters_of_integers_have_no_gradient():
    with pytest.raises(TypeError, match="no parameter is floating"):
        check_partials(right, {"a": {"w": np.array([1, 2])}, "b": [np.array(1)]})


def test_a_loss_that_is_random_is_refused():
    rng = np.random.default_rng(0)

    def f(p):
        value, back = right(p)
        return value + rng.standard_normal(), back

    with pytest.raises(ValueError, match=r"^f is random"):
        check_partials(f, P, seed=0)


def test_a_function_takes_the_parameters_alone():
    with pytest.raises(TypeError, match=r"with 2 arguments; .* functools\.partial"):
        check_partials(right, P, IDS)
    with pytest.raises(TypeError, match="with 1 argument, raise_exception=; give f and p"):
        check_partials(right, P, raise_exception=False)
    with pytest.raises(TypeError, match="f is an int; give a function of the parameters"):
        check_partials(3, P)


@pytest.mark.parametrize("small", [1.0, 1e-4, 1e-9])
def test_an_imaginary_part_that_is_lost_is_found_however_small_its_share(small):
    """The gradient of b is claimed to be 0, and a complex step says the same, because real() drops its part."""
    def loss(p):
        a, b = p["a"], p["b"]
        return np.sum(a ** 2) + small * np.sum(np.real(b) ** 2), lambda dy: {"a": dy * 2 * a, "b": 0 * np.real(b)}

    report = check_partials(loss, {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}, seed=0, budget=None)
    assert [pair.input for pair in report.pairs if pair.wrong] == ["b"]


def with_small_ones(small, lost):
    """A loss of one large and 12 small parameters, of which s3 and s7 lose this part of their imaginary numbers.

    back makes the same mistake, so a complex step confirms it.
    """
    sizes = {f"s{i}": small ** (i / 11) for i in range(12)}
    kept = {name: 1.0 - lost * (name in ("s3", "s7")) for name in sizes}

    def loss(p):
        total = np.sum(p["large"] ** 2)
        for name, size in sizes.items():
            total = total + size * np.sum(np.sin(kept[name] * p[name] + (1 - kept[name]) * np.real(p[name])))
        return total, lambda dy: {"large": dy * 2 * p["large"]} | {
            name: dy * size * kept[name] * np.cos(np.real(p[name])) for name, size in sizes.items()}

    rng = np.random.default_rng(0)
    return loss, {name: rng.standard_normal(3) for name in ("large", *sizes)}


@pytest.mark.parametrize("lost", [1.0, 0.01])
@pytest.mark.parametrize("small", [1.0, 1e-4, 1e-8])
def test_no_parameter_hides_what_it_loses_behind_others(small, lost):
    for seed in range(3):
        report = check_partials(*with_small_ones(small, lost), seed=seed, entries=0, budget=None)
        assert {pair.input for pair in report.pairs if pair.wrong} == {"s3", "s7"}


@pytest.mark.parametrize("size", [1e-3, 1e-9])
def test_parameters_that_the_loss_does_not_feel_hide_no_other(size):
    """A complex step says 0 for all of them, back too, and of two that is not true."""
    idle = [f"idle{i}" for i in range(6)]

    def loss(p):
        shifts = sum(p[name] for name in idle)
        felt = size * np.real(p["b"] - p["c"])
        return np.sum((p["a"] + shifts - shifts) ** 2 + felt), lambda dy: {
            name: dy * 2 * np.real(x) * (name == "a") for name, x in p.items()}

    rng = np.random.default_rng(0)
    p = {name: rng.standard_normal(3) for name in ("a", "b", "c", *idle)}
    for seed in range(3):
        report = check_partials(loss, p, seed=seed, entries=0, budget=None)
        assert {pair.input for pair in report.pairs if pair.wrong} == {"b", "c"}


@pytest.mark.parametrize("small", [1.0, 1e-7])
def test_differences_confirm_all_parameters_with_nine_calls(small):
    """Each parameter has one more, its complex step; of the other three two ask whether f is random."""
    f, p = with_small_ones(small, lost=0.0)
    calls = []

    def counted(p):
        calls.append(p)
        return f(p)

    assert check_partials(counted, p, seed=0, entries=0, budget=None)
    assert len(calls) == len(p) + 9 + 3


def test_a_loss_may_be_defined_near_the_parameters_alone():
    def loss(p):
        if np.max(np.real(p["w"])) > 1.001:
            raise ValueError("w is too large")
        return np.sum(p["w"] ** 2 * p["b"]), lambda dy: {"w": dy * 2 * p["w"] * p["b"], "b": dy * p["w"] ** 2}

    report = check_partials(loss, {"w": np.ones(2), "b": np.ones(2)}, seed=0, budget=None)
    assert report, str(report)


def test_kinks_near_the_point_do_not_make_each_parameter_be_confirmed_by_itself():
    """They are within the wide steps, the widest of which is 0.015.  Each narrower set takes 8 calls more."""
    def calls(f, derivative):
        number = 0

        def loss(p):
            nonlocal number
            number += 1
            x = np.stack([p[name] for name in sorted(p)])
            return np.sum(f(x)), lambda dy: dict(zip(sorted(p), dy * derivative(x), strict=True))

        report = check_partials(loss, {f"p{i:02}": np.array(1.001 + 0.0001 * i) for i in range(20)}, entries=0, seed=0,
                                budget=None)
        assert bool(report)
        return number

    def bent(x):
        return np.where(np.real(x) > 1, np.exp(x), np.e + 50 * (x - 1))

    assert calls(bent, np.exp) <= calls(np.exp, np.exp) + 16
