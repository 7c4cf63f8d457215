"""Matrices as products of two factors: their loss, their ranks, the models that have them and their files.

Their gradients are those of tests/test_models.py, and their decoding that of tests/test_generate.py and test_decode.py.
"""
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama import params
from pyllama.cli import main
from pyllama.compression.factorizing import factorized, second_moments
from pyllama.compression.low_rank import decomposed, ranks
from pyllama.compression.parts import in_own_memory
from pyllama.compression.pruning import Pruning, pruned
from pyllama.errors import UserError
from pyllama.formats import llama2c
from pyllama.models import llama, llama_config
from pyllama.models.sharing import expanded
from pyllama.pretrained import Model
from pyllama.quantization.passes import of_text, side_by_side
from pyllama.training import checkpoint
from tests.shared import written
from tests.test_models import randomized

SIZE = dict(vocab_size=19, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=16)
IDS = np.random.default_rng(0).integers(0, 19, (4, 12))
ROWS = of_text(IDS, IDS)
FAMILIES = {
    "llama": llama.LlamaConfig(**SIZE, attention_bias=True, mlp_bias=True),
    "tied": llama.LlamaConfig(**SIZE, tie_word_embeddings=True, rope_interleaved=True, embedding_size=5),
    "qwen3": llama_config.Qwen3Config(**SIZE, head_dim=4)}


# A matrix

@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.data())
def test_the_predicted_loss_is_the_measured_one(F, D, seed, data):
    """Of the products with a text whose second moments these are, to 1e-10 of what the whole matrix computes."""
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((F, D)), rng.standard_normal((40, D)) * np.exp(2 * rng.standard_normal(D))
    rank = data.draw(st.integers(0, min(F, D)))
    decomposition = decomposed(w, x.T @ x / len(x))
    u, v = decomposition.factors(rank)
    measured = np.square(x @ (w - u @ v).T).sum() / len(x)
    size = np.square(x @ w.T).sum() / len(x)
    assert abs(decomposition.loss(rank) - measured) <= 1e-10 * size
    assert decomposition.loss(0) == pytest.approx(size, rel=1e-10)
    plain = decomposed(w)
    u, v = plain.factors(rank)
    assert abs(plain.loss(rank) - np.square(w - u @ v).sum()) <= 1e-10 * np.square(w).sum()
    assert measured <= np.square(x @ (w - u @ v).T).sum() / len(x) + 1e-10 * size       # than the nearest matrix


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=5), st.floats(0.1, 0.99),
       st.integers(0, 99))
def test_ranks_are_within_the_budget_and_no_rank_more_would_be(shapes, share, seed):
    rng = np.random.default_rng(seed)
    decompositions = {f"m{i}": decomposed(rng.standard_normal(shape)) for i, shape in enumerate(shapes)}
    budget = share * sum(F * D for F, D in shapes)
    if budget < sum(min(F + D, F * D) for F, D in shapes):
        with pytest.raises(UserError, match="too small for one rank of every matrix"):
            ranks(decompositions, share)
        return
    chosen = ranks(decompositions, share)
    costs = [F * D if rank == 0 else rank * (F + D) for (F, D), rank in zip(shapes, chosen.values(), strict=True)]
    assert sum(costs) <= budget
    for (F, D), rank, cost in zip(shapes, chosen.values(), costs, strict=True):
        assert cost <= F * D
        assert rank == 0 or sum(costs) + min(F + D, F * D - cost) > budget


def test_the_budget_goes_where_a_number_buys_most():
    """A share of the energy, divided by the numbers that it costs: the scale of a matrix does not matter."""
    rng = np.random.default_rng(0)

    def made(F, D, values):
        left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (F, D))
        return decomposed(left[:, :len(values)] * values @ right[:len(values)])

    flat, steep = np.ones(8), np.array([8.0, 4, 2, 1, 0.1, 0.1, 0.1, 0.1])
    assert ranks({"a": made(8, 8, 100 * steep), "b": made(8, 8, steep)}, 0.76) == {"a": 3, "b": 3}
    assert ranks({"a": made(8, 8, flat), "b": made(8, 8, steep)}, 0.5) == {"a": 2, "b": 2}
    assert ranks({"a": made(8, 40, flat[:7]), "b": made(8, 8, flat)}, 0.3) == {"a": 1, "b": 0}
    # The next rank of a buys more than those of b, but costs 48 numbers, of which 32 are left.
    assert ranks({"a": made(8, 40, steep), "b": made(8, 8, np.array([8.0, 1, 1, 1, 1, 1, 1, 1]))}, 0.25) == \
        {"a": 1, "b": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tree_is_that_of_the_configuration(family):
    """With the biases, in the order in which files and optimizers know it."""
    c = FAMILIES[family]
    smaller = factorized(randomized(llama, c), c, 0.6)
    shapes = [(name, a.shape) for name, a in params.leaves(llama.init(smaller.config))]
    assert [(name, a.shape) for name, a in params.leaves(smaller.params)] == shapes


# A model

@pytest.mark.parametrize("family", FAMILIES)
def test_the_expanded_model_computes_the_same(family):
    """Sums in another order; two layers of sums of at most 20 terms, each rounded by 1e-16."""
    c = FAMILIES[family]
    c = replace(c, ranks_by_layer={"q_proj": [3, 0], "k_proj": [0, 2], "o_proj": [4, 1], "gate_proj": [2, 0],
                                   "up_proj": [0, 5], "down_proj": [3, 3]})
    p = randomized(llama, c)
    assert p["model"]["layers"][1]["mlp"]["up_proj"]["first"]["weight"].shape == (5, 12)
    plain, whole = expanded(c, p)
    assert not plain.shares
    assert not any(".first." in name for name, _ in params.leaves(whole))
    logits, want = llama.logits(IDS, p, c)[0], llama.logits(IDS, whole, plain)[0]
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-12 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("rows", [None, ROWS], ids=["numbers", "text"])
def test_the_losses_of_a_model_are_those_of_its_matrices(rows):
    """Of the products with the model's own inputs, and λ of the moments besides; float32 factors round by 1e-7."""
    c = FAMILIES["llama"]
    p = in_own_memory(randomized(llama, c))
    smaller = factorized(p, c, 0.6, rows)
    matrices = dict(params.leaves(p))
    products = dict(params.leaves(expanded(smaller.config, smaller.params)[1]))
    assert smaller.losses
    for name, loss in smaller.losses.items():
        w, h = matrices[name], second_moments(p, c, ROWS)[name] if rows else np.eye(matrices[name].shape[1])
        error = w - products[name]
        assert loss == pytest.approx(np.trace(error @ h @ error.T) / np.trace(w @ h @ w.T), abs=1e-5)
    sizes = [sum(a.size for name, a in params.leaves(tree) if "_proj" in name and a.ndim == 2)
             for tree in (p, smaller.params)]
    assert 0.5 * sizes[0] < sizes[1] <= 0.6 * sizes[0]


def test_moments_are_those_of_the_inputs():
    c = FAMILIES["llama"]
    p, inputs = in_own_memory(randomized(llama, c)), {}
    side_by_side(p, c, ROWS, lambda name, w, x, y: inputs.setdefault(name, (w, x))[0])
    for name, h in second_moments(p, c, ROWS).items():
        x = inputs[name][1].astype(np.float64)
        off = ~np.eye(len(h), dtype=bool)                       # λ is on the diagonal
        np.testing.assert_allclose(h[off], (x.T @ x / len(x))[off], rtol=1e-4, atol=1e-5 * np.abs(h).max())


def test_a_pruned_model_is_factorized():
    c = FAMILIES["llama"]
    smaller = pruned(llama.init(c), c, Pruning(heads=0.25, channels=0.3))
    again = factorized(smaller.params, smaller.config, 0.7)
    assert again.config.is_uneven
    assert np.isfinite(llama.loss(IDS, IDS, again.params, again.config)[0])
    model = Model(again.config, again.params)
    np.testing.assert_allclose(model.expanded().padded().logits(IDS)[0], model.logits(IDS)[0], rtol=0, atol=1e-4)


# Files

@pytest.mark.parametrize("interleaved", [False, True])
def test_a_folder_has_the_factors_and_a_gguf_file_their_products(interleaved, tmp_path):
    """Adjacent rotary pairs are moved in the rows of the second factors alone."""
    c = llama.LlamaConfig(**SIZE, head_dim=4, rope_interleaved=interleaved,
                          ranks_by_layer={"q_proj": [3, 0], "k_proj": [2, 4]})
    model = Model(c, in_own_memory(randomized(llama, c)))
    model.save(tmp_path / "folder")
    assert checkpoint.load(tmp_path / "folder").config["model_type"] == "pyllama-llama"
    again = pyllama.load(tmp_path / "folder")
    assert again.notes == ()
    assert again.config.ranks_by_layer == c.ranks_by_layer
    want = model.logits(IDS)[0]
    np.testing.assert_allclose(again.logits(IDS)[0], want, rtol=0, atol=1e-4 * np.abs(want).max())
    model.save(tmp_path / "model.gguf")
    np.testing.assert_allclose(pyllama.load(tmp_path / "model.gguf").logits(IDS)[0], want, rtol=0,
                               atol=1e-4 * np.abs(want).max())
    quantized = model.quantize("q8_0")
    assert quantized.params["model"]["layers"][0]["self_attn"]["q_proj"].keys() == {"first", "second"}
    with pytest.raises(UserError, match="requires ranks_by_layer = None"):
        llama2c.write(tmp_path / "model.bin", replace(c, rms_norm_eps=1e-5, head_dim=None), model.params)


# What is refused

@pytest.mark.parametrize("ranks_by_layer", [{"q_proj": [1]}, {"w_proj": [1, 1]}, {"q_proj": [1, -1]}, {"q_proj": 3}])
def test_ranks_that_do_not_fit_are_refused(ranks_by_layer):
    with pytest.raises(UserError, match="it must have a rank, or 0, of each of the 2 layers for some of q_proj"):
        llama.LlamaConfig(**SIZE, ranks_by_layer=ranks_by_layer)


def test_layers_that_share_weights_have_no_factors_of_their_own():
    with pytest.raises(UserError, match="ranks_by_layer gives every layer factors, but share_layers 2 gives several"):
        llama.LlamaConfig(**SIZE, share_layers=2, ranks_by_layer={"q_proj": [1, 1]})


def test_a_share_or_a_model_that_cannot_be_is_refused():
    c = llama.LlamaConfig(**SIZE)
    p = llama.init(c)
    for share in (0.0, 1.0, -2.0):
        with pytest.raises(UserError, match="it must lie in 0 < rank < 1"):
            factorized(p, c, share)
    smaller = factorized(p, c, 0.6)
    for again in (lambda: factorized(smaller.params, smaller.config, 0.5),
                  lambda: pruned(smaller.params, smaller.config, Pruning(layers=1))):
        with pytest.raises(UserError, match="the matrices of this model are factors already; give the model that"):
            again()


# The command

def test_the_command_writes_a_smaller_model_that_is_trained_on_and_resumed_bit_for_bit(tmp_path, capsys):
    text = written(tmp_path / "text.txt", "".join(np.random.default_rng(0).choice(list("abc d\n"), 3000)))
    model = pyllama.create("llama", str(text), hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=24, max_position_embeddings=16, seed=3)
    model.save(tmp_path / "model")
    data = ["--data", f"{text}"]
    assert main(["factorize", f"{tmp_path}/model", f"{tmp_path}/small", "--rank", "0.6", *data]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"\d+ of the layers' \d+ matrices have factors; mean squared error of their products \d", out)
    assert re.search(r"perplexity [\d.]+ before, [\d.]+ after", out)
    flags = ["--init_from", f"{tmp_path}/small", *data, "--block_size", "8", "--batch_size", "2", "--warmup_steps", "1",
             "--schedule", "constant", "--sample_tokens", "0"]
    for name, steps in (("whole", "4"), ("halves", "2")):
        assert main(["train", *flags, "--out_dir", f"{tmp_path}/{name}", "--max_steps", steps]) == 0
    assert main(["resume", f"{tmp_path}/halves", "--max_steps", "4"]) == 0
    one, other = (checkpoint.load(tmp_path / name) for name in ("whole", "halves"))
    for name, a in one.tensors.items():
        np.testing.assert_array_equal(a, other.tensors[name], err_msg=name)
    pairs = sum(".first.weight" in name for name in one.tensors)
    capsys.readouterr()
    assert main(["inspect", f"{tmp_path}/whole"]) == 0
    assert f"{pairs} pairs of factors for matrices" in " ".join(capsys.readouterr().out.split())
    assert pyllama.load(tmp_path / "whole").generate("ab", max_new_tokens=3).startswith("ab")
