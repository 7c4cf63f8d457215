"""Adapters: their gradients, their merge, the precision of the base, and what a wrong one is told."""
import ml_dtypes
import numpy as np
import pytest

import pyllama
from pyllama import params
from pyllama.errors import UserError
from pyllama.models import adapters, gpt2, llama
from pyllama.models.adapters import DETACHED, DORA, Lora
from pyllama.quantization import EncodedArray
from pyllama.testing import gradcheck

KINDS = ["", "exact", "detached"]
SMALL = {"llama": llama.LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                                    num_attention_heads=2, max_position_embeddings=8, attention_bias=True),
         "gpt2": gpt2.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0,
                                 embd_pdrop=0.0)}


def matrix(dora, turned=False, bias=True, F=5, D=4, R=2, seed=0):
    """An adapted matrix with random numbers everywhere."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((F, D))
    p = {"weight": w.T if turned else w} | ({"bias": rng.standard_normal(F)} if bias else {})
    p |= {"lora_A": {"weight": rng.standard_normal((R, D))}, "lora_B": {"weight": rng.standard_normal((F, R))},
          "lora_scale": np.array(0.7)}
    p |= {DORA: rng.uniform(1, 2, F)} if dora else {}
    return p | ({DETACHED: np.ones(())} if dora == "detached" else {})


def model_of(family, lora, seed=0):
    """(configuration, the base's tree, the adapted tree with random numbers everywhere), in float64."""
    c = SMALL[family]
    base = c.model.init(c, seed, "float64")
    rng = np.random.default_rng(seed)
    arrays = adapters.begun(base, c, lora, seed, "float64")
    arrays |= {name: rng.uniform(0.5, 1, a.shape) for name, a in arrays.items() if a.ndim}
    return c, base, adapters.attached(base, arrays)


# --- gradients --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dora", ["", "exact"])
def test_every_gradient_is_that_of_a_complex_step(dora, turned, bias):
    whole = matrix(dora, turned, bias)
    trained = {name: leaf for name, leaf in whole.items() if name != "lora_scale"}
    x = np.random.default_rng(1).standard_normal((2, 3, 4))

    def layer(x, p):
        y, back = adapters.adapted(x, {**p, "lora_scale": whole["lora_scale"]}, turned)

        def both(dy):
            dx, dp = back(dy)
            return dx, {name: dp[name] for name in p}

        return y, both

    assert gradcheck(layer, [x, trained], methods=["complex step"])


def test_a_detached_norm_gives_the_gradient_of_a_constant_norm_which_is_another_one():
    x, dy = np.random.default_rng(1).standard_normal((3, 4)), np.random.default_rng(2).standard_normal((3, 5))
    exact, detached = (adapters.adapted(x, matrix(dora))[1](dy)[1] for dora in ("exact", "detached"))
    p = matrix("exact")
    _, n = adapters.merge(p)

    def constant(a, b):
        """The layer with its norm as it is for p, so that the complex step is that of a constant n."""
        w = p["weight"] + p["lora_scale"] * b @ a
        return ((x @ w.T) * (p[DORA] / n) * dy).sum()

    steps = {}
    for name, k in (("lora_A", 0), ("lora_B", 1)):
        ab = [p["lora_A"]["weight"], p["lora_B"]["weight"]]
        steps[name] = np.empty_like(ab[k])
        for entry in np.ndindex(ab[k].shape):
            moved = [a.astype(complex) for a in ab]
            moved[k][entry] += 1e-30j
            steps[name][entry] = constant(*moved).imag / 1e-30
        np.testing.assert_allclose(detached[name]["weight"], steps[name], rtol=1e-12, atol=1e-14)
        apart = np.linalg.norm(exact[name]["weight"] - detached[name]["weight"])
        assert apart > 0.1 * np.linalg.norm(exact[name]["weight"])
    np.testing.assert_array_equal(exact[DORA], detached[DORA])


def test_an_exact_update_sees_that_a_longer_row_is_divided_by_its_length():
    p = matrix("exact", bias=False)
    x, dy = np.random.default_rng(1).standard_normal((3, 4)), np.random.default_rng(2).standard_normal((3, 5))
    _, back = adapters.adapted(x, p)
    along = p["weight"] + adapters.update(p)            # W' longer: W' -> (1 + t) W' must not change the output
    dw = back(dy)[1]["weight"]
    assert np.abs(np.einsum("fd,fd->f", dw, along)).max() < 1e-12 * np.abs(dw).max()
    dw = adapters.adapted(x, matrix("detached", bias=False))[1](dy)[1]["weight"]
    assert np.abs(np.einsum("fd,fd->f", dw, along)).max() > 0.1 * np.abs(dw).max()


# --- merge = forward = unmerge ----------------------------------------------------------------------------------------

def test_a_row_of_zeros_is_merged_as_it_is_computed():
    """Its length is 0, and so is its m at first: 0 / 0 would be NaN."""
    p = matrix("exact")
    p["weight"][1], p["lora_B"]["weight"][1], p[DORA][1] = 0, 0, 0
    x = np.random.default_rng(1).standard_normal((3, 4))
    np.testing.assert_allclose(x @ adapters.merge(p)[0].T + p["bias"], adapters.adapted(x, p)[0], rtol=1e-12)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dora", KINDS)
def test_a_merged_matrix_computes_the_same_and_is_unmerged_to_the_base(dora, turned):
    p = matrix(dora, turned, F=4)                       # square: a wrong axis does not fail by its shape
    x = np.random.default_rng(1).standard_normal((3, 4))
    y, _ = adapters.adapted(x, p, turned)
    weight, n = adapters.merge(p, turned)
    np.testing.assert_allclose(x @ (weight if turned else weight.T) + p["bias"], y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(adapters.unmerge(weight, n, p, turned), p["weight"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dora", KINDS)
@pytest.mark.parametrize("family", SMALL)
def test_a_model_with_merged_adapters_computes_the_same(family, dora):
    c, base, tree = model_of(family, Lora((adapters.ALL,), rank=2, dora=dora))
    ids = np.arange(6).reshape(1, 6)
    z, _ = c.model.logits(ids, tree, c)
    merged = adapters.merged(tree, c)
    assert [name for name, _ in params.leaves(merged)] == [name for name, _ in params.leaves(base)]
    np.testing.assert_allclose(c.model.logits(ids, merged, c)[0], z, rtol=1e-12, atol=1e-12)
    assert np.abs(z - c.model.logits(ids, base, c)[0]).max() > 1e-3


@pytest.mark.parametrize("dora", KINDS)
@pytest.mark.parametrize("family", SMALL)
def test_a_new_adapter_changes_nothing(family, dora):
    c = SMALL[family]
    base = c.model.init(c, 0, "float64")
    tree = adapters.attached(base, adapters.begun(base, c, Lora((adapters.ALL,), 2, dora=dora), dtype="float64"))
    ids = np.arange(6).reshape(1, 6)
    np.testing.assert_allclose(c.model.logits(ids, tree, c)[0], c.model.logits(ids, base, c)[0], rtol=1e-12, atol=1e-14)


def test_a_row_of_zeros_stays_finite():
    p = matrix("exact")
    p["weight"][1] = p["lora_B"]["weight"][1] = p[DORA][1] = 0
    y, back = adapters.adapted(np.ones((2, 4)), p)
    dx, dp = back(np.ones((2, 5)))
    assert all(np.isfinite(a).all() for a in (y, dx, *(leaf for _, leaf in params.leaves(dp))))


# --- the base in other precisions -------------------------------------------------------------------------------------

@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("dora", KINDS)
def test_an_encoded_base_gives_the_bits_of_its_decoded_numbers(monkeypatch, dora, kind, turned):
    monkeypatch.setattr("pyllama.quantization.encoded.PANEL", 64)           # so that there are several panels
    p = matrix(dora, turned, F=7, D=32)
    encoded = EncodedArray.of(p["weight"].T if turned else p["weight"], kind)
    plain = encoded.decoded("float64")
    x, dy = np.random.default_rng(1).standard_normal((3, 32)), np.random.default_rng(2).standard_normal((3, 7))
    y, back = adapters.adapted(x, p | {"weight": encoded.T if turned else encoded}, turned)
    y0, back0 = adapters.adapted(x, p | {"weight": plain.T if turned else plain}, turned)
    np.testing.assert_allclose(y, y0, rtol=1e-13, atol=1e-13)
    (dx, dp), (dx0, dp0) = back(dy), back0(dy)
    np.testing.assert_allclose(dx, dx0, rtol=1e-13, atol=1e-13)
    assert dp.pop("weight") == 0
    dp0.pop("weight")
    for (name, a), (_, b) in zip(params.leaves(dp), params.leaves(dp0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


def test_bfloat16_rounds_the_activations_alone_not_the_norm():
    p = matrix("exact", F=16, D=16)
    low = {name: a.astype(ml_dtypes.bfloat16) if name == "weight" else np.float32(a) for name, a in p.items()
           if not isinstance(a, dict)}
    low |= {name: {"weight": p[name]["weight"].astype(ml_dtypes.bfloat16)} for name in ("lora_A", "lora_B")}
    n, _ = adapters.norms(low["weight"], low)
    wide = adapters.merge({name: {"weight": np.float64(a["weight"])} if isinstance(a, dict) else np.float64(a)
                           for name, a in low.items()})[1]
    np.testing.assert_allclose(n, wide, rtol=1e-6)      # sums of 16 products in float32: 16 half units of 2^-23
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(ml_dtypes.bfloat16)
    y, back = adapters.adapted(x, low)
    dx, dp = back(y)
    assert y.dtype == dx.dtype == ml_dtypes.bfloat16
    assert {a.dtype for name, a in params.leaves(dp) if a.ndim} == {np.dtype(np.float32)}


# --- which matrices ---------------------------------------------------------------------------------------------------

def test_a_name_is_the_last_part_of_a_matrix_or_more_of_it():
    c, base, _ = model_of("llama", Lora((adapters.ALL,), 2))
    assert len(adapters.targeted(base, c, Lora((adapters.ALL,), 2))) == 14
    assert list(adapters.targeted(base, c, Lora(("0.self_attn.q_proj", "v_proj"), 2))) == [
        "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize(("lora", "message"), [
    (Lora(("q_proj", "query"), 2), "lora names 'query', but the layers of this model have no such matrix; give some of "
                                   "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or all-linear"),
    (Lora(("up_proj",), 9), "rank is 9, but model.layers.0.mlp.up_proj is 12 x 8 and has no more than 8; make rank "
                            "smaller"),
    (Lora(("embed_tokens",), 2), "lora names 'embed_tokens'"),
])
def test_matrices_that_are_not_there_and_ranks_above_them_are_refused(lora, message):
    c = SMALL["llama"]
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        adapters.begun(c.model.init(c), c, lora)


@pytest.mark.parametrize("family", [family for family in pyllama.models.MODELS if family != "lstm"])
def test_every_matrix_that_may_have_an_adapter_reads_it(family):
    tokenizer = pyllama.text.special.byte_pairs(["a b c d"], 300, [])
    c = pyllama.create(family, tokenizer, hidden_size=8, num_hidden_layers=1, num_attention_heads=2).config
    base = c.model.init(c, 0, "float64")
    lora = Lora((adapters.ALL,), 2, dora="exact")
    tree = adapters.attached(base, adapters.begun(base, c, lora, dtype="float64"))
    assert adapters.matrices(tree, c) == adapters.matrices(base, c) != {}
    ids = np.arange(4, 10).reshape(1, 6)
    _, back = c.model.loss(ids, ids, tree, c)
    grads = dict(params.leaves(back()))
    for name, a in adapters.of_adapter(tree).items():
        if name.endswith(("lora_B.weight", DORA)):
            assert grads[name].shape == a.shape
            assert grads[name].any(), name
