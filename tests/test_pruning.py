"""Models without some of their heads, channels and layers: what they compute, how the parts are chosen, their files.

The gradients of layers of different sizes are those of tests/test_models.py, and their decoding that of
tests/test_generate.py and test_decode.py.
"""
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllama
from pyllama import params
from pyllama.compression.choice import lasting
from pyllama.compression.parts import Kept, everything, without_the_rest
from pyllama.compression.pruning import Pruning, pruned, without
from pyllama.compression.repair import fitted
from pyllama.compression.scores import magnitude, taylor, wanda
from pyllama.errors import UserError
from pyllama.formats import gguf_llama, llama2c
from pyllama.models import bert, llama, llama_config
from pyllama.models.uneven import padded
from pyllama.pretrained import Model
from pyllama.quantization.moments import Moments
from pyllama.quantization.passes import of_text, side_by_side
from pyllama.training import checkpoint
from tests.test_models import randomized

SIZE = dict(vocab_size=19, hidden_size=12, intermediate_size=8, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=3, max_position_embeddings=16)
IDS = np.random.default_rng(0).integers(0, 19, (4, 12))
ROWS = of_text(IDS, IDS)
FAMILIES = {
    "llama": llama.LlamaConfig(**SIZE, attention_bias=True, mlp_bias=True),
    "tied": llama.LlamaConfig(**SIZE, tie_word_embeddings=True, rope_interleaved=True, embedding_size=5),
    "mistral": llama_config.MistralConfig(**SIZE | {"sliding_window": 3}),
    "qwen2": llama_config.Qwen2Config(**SIZE, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3": llama_config.Qwen3Config(**SIZE, head_dim=4),
}


def parts_of(data, c):
    """Any parts of a model, at least one of each kind."""
    masks = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)) for n in
             (c.num_hidden_layers, *[c.groups] * c.num_hidden_layers, *[c.intermediate_size] * c.num_hidden_layers)]
    layers, *of_layers = map(np.array, masks)
    return Kept(layers, of_layers[:c.num_hidden_layers], of_layers[c.num_hidden_layers:])


def switched_off(p, c, kept):
    """The model of the same shapes in which the output columns, and the biases of layers that leave, are zero."""
    tree = params.rebuild(p, (np.array(leaf) for _, leaf in params.leaves(p)))
    for i, layer in enumerate(tree["model"]["layers"]):
        for path, columns in kept.columns(i, c).items():
            branch, name = path.split(".")
            layer[branch][name]["weight"][:, ~columns] = 0
            if not kept.layers[i] and "bias" in layer[branch][name]:
                layer[branch][name]["bias"][:] = 0
    return tree


def in_float32(p):
    return params.rebuild(p, (leaf.astype(np.float32) for _, leaf in params.leaves(p)))


def same(a, b):
    """Sums of the same terms in another order: three layers of sums of 12 terms, each rounded by 1e-16."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, np.abs(b).max()))


# What is computed

@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25)
@given(data=st.data())
def test_a_model_without_parts_computes_what_it_does_with_them_switched_off_and_so_does_the_padded_one(family, data):
    c = FAMILIES[family]
    p, kept = randomized(llama, c), parts_of(data, c)
    smaller, tree = without_the_rest(p, c, kept)
    logits = llama.logits(IDS, tree, smaller)[0]
    same(logits, llama.logits(IDS, switched_off(p, c, kept), c)[0])
    even, zeros = padded(smaller, tree)
    assert not even.is_uneven
    same(llama.logits(IDS, zeros, even)[0], logits)
    sizes = [[layer[name]["weight"].shape[1] for layer in parts] for name, parts in
             (("o_proj", [layer["self_attn"] for layer in tree["model"]["layers"]]),
              ("down_proj", [layer["mlp"] for layer in tree["model"]["layers"]]))]
    R = c.num_attention_heads // c.groups
    assert sizes == [[R * c.head_width * kept.heads[i].sum() for i in np.flatnonzero(kept.layers)],
                     [kept.channels[i].sum() for i in np.flatnonzero(kept.layers)]]


def test_what_is_pruned_is_pruned_again():
    c = FAMILIES["qwen3"]
    p = llama.init(c)
    once = pruned(p, c, Pruning(heads=0.3, channels=0.4))
    twice = pruned(once.params, once.config, Pruning(heads=0.3, channels=0.4, layers=1))
    sizes = [sum(a.size for _, a in params.leaves(tree)) for tree in (p, once.params, twice.params)]
    assert sizes == sorted(sizes, reverse=True)
    assert len({*sizes}) == 3
    assert twice.config.num_hidden_layers == 2
    assert np.isfinite(llama.loss(IDS, IDS, twice.params, twice.config)[0])


# Scores

def test_taylors_score_is_the_slope_of_a_gate():
    """By central differences of width 1e-5, whose error is of order 1e-10; of one window, so that nothing is averaged.

    A layer's gate multiplies both of its branches."""
    c = llama.LlamaConfig(**SIZE)
    p, rows, width = randomized(llama, c), of_text(IDS[:1], IDS[:1]), 1e-5
    scores = taylor(p, c, rows)

    def slope(*gates):
        def loss(gate):
            tree = params.rebuild(p, (np.array(leaf) for _, leaf in params.leaves(p)))
            for branch, name, columns in gates:
                tree["model"]["layers"][1][branch][name]["weight"][:, columns] *= gate
            return llama.loss(IDS[:1], IDS[:1], tree, c)[0]
        return abs(loss(1 + width) - loss(1 - width)) / (2 * width)

    everything = slice(None)
    assert scores.heads[1][2] == pytest.approx(slope(("self_attn", "o_proj", slice(8, 12))), rel=1e-6)
    assert scores.channels[1][3] == pytest.approx(slope(("mlp", "down_proj", [3])), rel=1e-6)
    both = slope(("self_attn", "o_proj", everything), ("mlp", "down_proj", everything))
    assert scores.layers[1] == pytest.approx(both, rel=1e-6)


def test_magnitudes_and_wandas_scores_are_the_sums_that_they_are_said_to_be():
    """A norm of a channel's inputs is that of silu(g) u."""
    c = replace(llama.LlamaConfig(**SIZE), num_hidden_layers=1)
    p = randomized(llama, c)
    attention, mlp = (p["model"]["layers"][0][branch] for branch in ("self_attn", "mlp"))
    q, k, v, o = (attention[f"{x}_proj"]["weight"] for x in "qkvo")
    head = np.concatenate([q[4:8].ravel(), k[2:4].ravel(), v[2:4].ravel(), o[:, 4:8].ravel()])
    scores = magnitude(p, c)
    assert scores.heads[0][1] == pytest.approx(np.linalg.norm(head), rel=1e-12)
    channel = [mlp["gate_proj"]["weight"][5], mlp["up_proj"]["weight"][5], mlp["down_proj"]["weight"][:, 5]]
    assert scores.channels[0][5] == pytest.approx(np.linalg.norm(channel), rel=1e-12)
    assert scores.layers[0] == pytest.approx(scores.heads[0].sum() + scores.channels[0].sum(), rel=1e-12)
    inputs = {}
    side_by_side(p, c, ROWS, lambda name, w, x, y: inputs.setdefault(name, (w, x))[0])
    scores = wanda(p, c, ROWS)
    for branch, of_channel, want in (("self_attn.o_proj", slice(4, 8), scores.heads[0][1]),
                                     ("mlp.down_proj", slice(5, 6), scores.channels[0][5])):
        _, x = inputs[f"model.layers.0.{branch}.weight"]
        w = o if branch.startswith("self") else mlp["down_proj"]["weight"]
        assert want == pytest.approx(sum(np.abs(w[:, k]).sum() * np.linalg.norm(x[:, k])
                                         for k in range(of_channel.start, of_channel.stop)), rel=1e-12)


def test_layers_are_scored_by_the_loss_unless_a_score_is_named():
    c = llama.LlamaConfig(**SIZE)
    p = in_float32(randomized(llama, c))
    for layer, scale in zip(p["model"]["layers"], (3.0, 1.0, 0.1), strict=True):
        layer["mlp"]["down_proj"]["weight"] *= scale
    left = {score: int(np.flatnonzero(~pruned(p, c, Pruning(layers=1, score=score), ROWS).kept.layers)[0])
            for score in (None, "taylor", "wanda")}
    assert left[None] == left["taylor"] == int(np.argmin(taylor(p, c, ROWS).layers))
    assert left["wanda"] == int(np.argmin(wanda(p, c, ROWS).layers)) != left[None]


# The choice

@pytest.mark.parametrize(("score", "names"), [("magnitude", ("gate_proj", "up_proj", "down_proj")),
                                              ("wanda", ("down_proj",))])
def test_the_scale_of_a_layers_weights_does_not_decide_what_leaves(score, names):
    """A power of two, in the last layer, which no other layer reads; so its scores are multiples to the bit."""
    c = llama.LlamaConfig(**SIZE)
    p = in_float32(randomized(llama, c))
    pruning = Pruning(channels=0.3, score=score, repair=False)
    kept = pruned(p, c, pruning, ROWS).kept.channels
    for name in names:
        p["model"]["layers"][2]["mlp"][name]["weight"] *= 64
    np.testing.assert_array_equal(pruned(p, c, pruning, ROWS).kept.channels, kept)


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=4), st.floats(0, 0.9),
       st.booleans())
def test_the_lowest_scores_leave_and_every_layer_keeps_one(scores, share, even):
    scores = [np.array(each) for each in scores]
    total = sum(map(len, scores))
    leaving = [int(share * len(each) + 1e-9) for each in scores] if even else [int(share * total + 1e-9)]
    if share and not all(leaving):
        with pytest.raises(UserError, match=r"less than one of|only one of them"):
            lasting(scores, share, even, "heads")
        return
    if not even and leaving[0] > total - len(scores):
        with pytest.raises(UserError, match="every layer keeps one"):
            lasting(scores, share, even, "heads")
        return
    masks = lasting(scores, share, even, "heads")
    assert all(mask.any() for mask in masks)
    left = sum(int((~mask).sum()) for mask in masks)
    assert left == sum(leaving)
    for each, mask in zip(scores, masks, strict=True):
        assert not left or max(each[~mask], default=0) <= min(each[mask])
    crowded = [each[mask].min() for each, mask in zip(scores, masks, strict=True) if mask.sum() > 1]
    if left and crowded and not even:
        assert max(max(each[~mask], default=0) for each, mask in zip(scores, masks, strict=True)) <= min(crowded)


def test_the_last_part_of_a_layer_stays_whatever_its_score():
    masks = lasting([np.array([0.0]), np.array([1.0, 2.0, 3.0])], 0.5, False, "heads")
    assert [mask.tolist() for mask in masks] == [[True], [False, False, True]]


# Repair

@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_the_error_on_the_text_never_rises(places, columns, seed, same_inputs):
    """But for rounding: the differences W x - V y may be far smaller than their terms."""
    rng = np.random.default_rng(seed)
    x, w, stays = rng.standard_normal((places, columns)), rng.standard_normal((3, columns)), rng.random(columns) < 0.5
    stays[rng.integers(columns)] = True
    y = x if same_inputs else x + rng.standard_normal(x.shape) * rng.choice([0.0, 0.1, 3.0])
    fit = fitted(w, x, y, stays)
    assert not fit.weight[:, ~stays].any()
    (before, rounding), (after, other_rounding) = (distance(w, x, v, y) for v in (np.where(stays, w, 0), fit.weight))
    assert np.sqrt(fit.before) == pytest.approx(before, rel=1e-12, abs=rounding)
    assert np.sqrt(fit.after) == pytest.approx(after, rel=1e-12, abs=other_rounding)
    assert after <= before * (1 + 1e-12) + rounding + other_rounding


def distance(w, x, v, y):
    """‖W x - V y‖ / ‖W x‖ and a bound of its rounding: n products and sums of each term round by n + 1 units of its
    magnitude, n <= 5, here and in the program."""
    size = np.linalg.norm(x @ w.T)
    magnitude = np.linalg.norm(np.abs(x) @ np.abs(w.T) + np.abs(y) @ np.abs(v.T))
    return np.linalg.norm(x @ w.T - y @ v.T) / size, 12 * np.finfo(float).eps / 2 * magnitude / size


@given(st.integers(1, 40), st.integers(0, 99))
def test_no_other_matrix_is_better(places, seed):
    """V minimizes E|W x - V y|² + λ‖V - W‖², of which λ is that of the moments."""
    rng = np.random.default_rng(seed)
    x, y, w = *rng.standard_normal((2, places, 4)), rng.standard_normal((3, 4))
    moments = Moments(4)
    moments.add(y)
    penalty = (moments.estimate() - moments.mean())[0, 0]

    def f(v):
        return np.square(x @ w.T - y @ v.T).sum() / places + penalty * np.square(v - w).sum()

    v = fitted(w, x, y, np.ones(4, bool)).weight
    assert all(f(v) < f(v + 0.01 * rng.standard_normal(v.shape)) for _ in range(5))


def test_parts_that_are_there_twice_stand_in_for_each_other():
    """One of each pair leaves.  The penalty, which is larger for few rows, lets some of the error stay."""
    c = llama.LlamaConfig(**SIZE | {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
                                  "head_dim": 4})
    p = in_float32(randomized(llama, c))
    for layer in p["model"]["layers"]:
        for branch, names in (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj"))):
            for name in names:
                w = layer[branch][name]["weight"]
                w[len(w) // 2:] = w[:len(w) // 2]
    ids = np.random.default_rng(1).integers(0, 19, (60, 17))
    kept = Kept(np.ones(2, bool), [np.array([True, False])] * 2, [np.arange(8) < 4] * 2)
    repaired, plain = (without(kept, p, c, rows) for rows in (of_text(ids, ids), None))
    want = llama.logits(IDS, p, c)[0]
    errors = [np.abs(llama.logits(IDS, each.params, each.config)[0] - want).max() for each in (repaired, plain)]
    assert errors[0] < 0.1 * errors[1]
    assert not plain.fits


def inputs_of(model, c):
    """{name: inputs} of the matrices of the layers."""
    inputs = {}

    def seen(name, w, x, y):
        inputs[name] = x
        return w

    side_by_side(model, c, ROWS, seen)
    return inputs


def test_the_error_is_that_of_the_smaller_model_although_the_biases_of_a_layer_leave_too():
    c = FAMILIES["llama"]
    p = in_float32(randomized(llama, c))
    smaller = without(everything(c)._replace(layers=np.array([True, False, True])), p, c, ROWS)
    x, y = inputs_of(p, c), inputs_of(smaller.params, smaller.config)
    before, after = (dict(params.leaves(tree)) for tree in (p, smaller.params))
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        whole, rest = f"model.layers.2.{name}", f"model.layers.1.{name}"
        target = x[whole] @ before[whole].T
        error = np.linalg.norm(target - y[rest] @ after[rest].T)**2 / np.linalg.norm(target)**2
        assert smaller.fits[whole].after == pytest.approx(error, rel=1e-4)


# Files

UNEVEN = llama.LlamaConfig(**SIZE, num_key_value_heads_by_layer=[3, 1, 2], intermediate_size_by_layer=[8, 8, 2],
                           tie_word_embeddings=True, rms_norm_eps=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_folder_has_the_sizes_and_is_not_for_transformers(interleaved, tmp_path):
    """Adjacent rotary pairs are moved in each head, of which layers have different numbers."""
    c = replace(UNEVEN, head_dim=4, rope_interleaved=interleaved)
    model = Model(c, in_float32(randomized(llama, c)))
    model.save(tmp_path)
    assert checkpoint.load(tmp_path).config["model_type"] == "pyllama-llama"
    again = pyllama.load(tmp_path)
    assert again.notes == ()
    assert replace(again.config, rope_interleaved=interleaved).to_dict() == c.to_dict()
    np.testing.assert_allclose(again.logits(IDS)[0], model.logits(IDS)[0], rtol=0, atol=1e-3)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"model_type": "llama"}))
    with pytest.raises(UserError, match="has shape"):           # another program's keys of these names are not ours
        pyllama.load(tmp_path)


def test_equal_layers_make_an_ordinary_configuration():
    c = llama.LlamaConfig(**SIZE)
    smaller = pruned(llama.init(c), c, Pruning(heads=0.34, channels=0.5, layers=1, even=True)).config
    assert smaller.to_dict() == replace(c, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                        head_dim=2, intermediate_size=4).to_dict()
    assert smaller.to_dict()["model_type"] == "llama"


@pytest.mark.parametrize(("fields", "kind"), [({}, "mistral"), ({"attention_bias": True}, "pyllama-llama")])
def test_a_width_that_is_not_a_multiple_of_the_heads_is_not_a_llama_for_transformers(fields, kind, tmp_path):
    """Whose LlamaConfig.validate_architecture refuses it."""
    c = llama.LlamaConfig(**SIZE | {"num_attention_heads": 6, "num_key_value_heads": 6}, **fields)
    smaller = pruned(llama.init(c), c, Pruning(heads=0.17, even=True))
    model = Model(smaller.config, smaller.params)
    model.save(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["model_type"], stored["sliding_window"], stored["head_dim"]) == (kind, None, 2)
    again = pyllama.load(tmp_path)
    assert again.notes == ()
    np.testing.assert_array_equal(again.logits(IDS)[0], model.logits(IDS)[0])


def test_other_formats_refuse_different_layers_or_get_zeros(tmp_path):
    model = Model(UNEVEN, llama.init(UNEVEN))
    with pytest.raises(UserError, match="equally many heads and channels in every layer, but this model was"):
        model.save(tmp_path / "model.gguf")
    with pytest.raises(UserError, match="requires is_uneven = False, but the model has True"):
        llama2c.write(tmp_path / "model.bin", replace(UNEVEN, tie_word_embeddings=True), model.params)
    model.padded().save(tmp_path / "model.gguf")
    np.testing.assert_allclose(pyllama.load(tmp_path / "model.gguf").logits(IDS)[0], model.logits(IDS)[0], rtol=0,
                               atol=1e-5)
    assert gguf_llama.written(model.padded().config, model.padded().params)


# What is refused

@pytest.mark.parametrize(("fields", "message"), [
    ({"num_key_value_heads_by_layer": [3, 3]}, "must have a number from 1 to 3 for each of the 3 layers"),
    ({"num_key_value_heads_by_layer": [3, 4, 1]}, "must have a number from 1 to 3 for each of the 3 layers"),
    ({"intermediate_size_by_layer": [0, 8, 8]}, "must have a number from 1 to 8 for each of the 3 layers"),
    ({"intermediate_size_by_layer": [8, 8, 8], "share_layers": 3}, "share_layers 3 gives several the same weights")])
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        llama.LlamaConfig(**SIZE, **fields)


@pytest.mark.parametrize(("settings", "message"), [
    ({"heads": 1.0}, r"heads is 1\.0; it must lie in 0 <= share < 1"),
    ({"channels": -0.1}, r"channels is -0\.1; it must lie in 0 <= share < 1"),
    ({"layers": -1}, "layers is -1; it must be at least 0"),
    ({}, "heads, channels and layers are 0, so that nothing would leave; set one of them"),
    ({"layers": 3}, "layers is 3, but the model has 3, of which one must stay"),
    ({"heads": 0.1}, r"heads is 0\.1, less than one of the model's 9 heads; make it at least 0\.112"),
    ({"heads": 0.9}, r"heads is 0\.9, 8 of the model's 9 heads, but every layer keeps one; make it smaller"),
    ({"heads": 0.3, "even": True}, r"heads is 0\.3, less than one of a layer's 3 heads; make it at least 0\.334"),
    ({"heads": 0.5, "score": "wanda"}, "the score wanda compares what a text does in the model; give data, or set")])
def test_shares_that_cannot_be_are_refused(settings, message):
    c = llama.LlamaConfig(**SIZE)
    with pytest.raises(UserError, match=message):
        pruned(llama.init(c), c, Pruning(**settings))


@pytest.mark.parametrize(("even", "layers"), [(True, 3), (False, 1)])
def test_the_only_head_of_a_layer_stays(even, layers):
    c = llama.LlamaConfig(**SIZE | {"num_key_value_heads": 1, "num_hidden_layers": layers})
    with pytest.raises(UserError, match=r"heads is 0\.5, but a layer has only one of them, and .*; set it to 0"):
        pruned(llama.init(c), c, Pruning(heads=0.5, even=even))


@pytest.mark.parametrize(("c", "message"), [
    (bert.BertConfig(vocab_size=19, hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8),
     "only llama, mistral, qwen2, qwen3 can be made smaller in this way, but the model is a bert; give one"),
    (llama.LlamaConfig(**SIZE, share_layers=3), r"layers of this model share weights \(share_layers 3\)")])
def test_other_models_are_refused(c, message):
    with pytest.raises(UserError, match=message):
        pruned(c.model.init(c), c, Pruning(channels=0.5))
