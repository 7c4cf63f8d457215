"""Storage formats, and encoded matrices in a tree of parameters."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.quantization import EncodedArray, blocks, decoded_tree, encoded_tree, is_quantized
from tests.quantized import matrices, random

KINDS = [*blocks.FORMATS]
each_kind = pytest.mark.parametrize("kind", KINDS)


def test_a_block_of_q8_0_by_hand():
    """127 at 1, so that d is 1/127 in float16; halves are rounded away from zero."""
    row = np.zeros((1, 32), np.float32)
    row[0, :4] = 127, -127, 0.5, -0.5
    data = blocks.encode(row, "q8_0")[0]
    assert data[:2].view(np.float16) == 1
    assert data[2:].view(np.int8).tolist() == [127, -127, 1, -1] + [0] * 28


def test_a_block_of_q4_0_by_hand():
    """The largest number is -8 and becomes 0; number j + 16 is in the high half of byte j."""
    row = np.zeros((1, 32), np.float32)
    row[0, [0, 1, 16, 17]] = -8, 7, 3, -3
    data = blocks.encode(row, "q4_0")[0]
    assert data[:2].view(np.float16) == 1
    assert data[2:].tolist() == [0 | 11 << 4, 15 | 5 << 4] + [8 | 8 << 4] * 14


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@given(x=matrices)
@example(x=np.full((1, 32), 2.0**-140, np.float32))         # 1/d is infinite
def test_the_error_is_at_most_half_a_step(kind, x):
    """Half a step, the rounding of d to float16 (2⁻¹¹, or half its least subnormal), and q4_0's missing +8.

    q is rounded by the exact d, but decoded by the float16: |q| times its error, at most 127 or 8 times.
    """
    x = np.clip(x, -6e4, 6e4)
    error = abs(blocks.decode(blocks.encode(x, kind), kind) - x).reshape(-1, 32)
    levels = {"q8_0": 127, "q4_0": 8}[kind]
    d = abs(x.reshape(-1, 32)).max(axis=1, keepdims=True).astype(np.float64) / levels
    step = 1 if kind == "q4_0" else 0.5
    bound = d * (step + 1e-5) + levels * np.maximum(d * 2.0**-11, 2.0**-25)
    assert (error <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused(kind, bad):
    x = random(2, 64)
    x[1, 40] = bad
    with pytest.raises(UserError, match=r"NaN, infinite or too large .*; "):
        blocks.encode(x, kind)


@pytest.mark.parametrize(("kind", "large"), [("f16", 65520.0), ("q8_0", 8.4e6), ("q4_0", 5.3e5), ("bf16", 3.4e38)])
def test_a_number_that_is_too_large_is_refused(kind, large):
    x = random(2, 64)
    x[1, 40] = large
    with pytest.raises(UserError, match="too large"):
        blocks.encode(x, kind)


def test_a_row_that_cannot_be_divided_into_blocks_is_refused():
    with pytest.raises(ValueError, match="a row has 40 numbers, but q8_0 stores blocks of 32"):
        blocks.encode(random(2, 40), "q8_0")
    assert blocks.encode(random(2, 40), "f16").shape == (2, 80)
    assert blocks.encode(random(0, 64), "q4_0").shape == (0, 36)


def test_many_rows_are_encoded_in_pieces(monkeypatch):
    x = random(50, 64)
    whole = {kind: blocks.encode(x, kind) for kind in KINDS}
    monkeypatch.setattr(blocks, "PIECE", 64 * 7)
    for kind, data in whole.items():
        np.testing.assert_array_equal(blocks.encode(x, kind), data)


# --- encoded matrices -------------------------------------------------------------------------------------------------

@each_kind
def test_an_encoded_matrix_and_its_transpose(kind):
    x = random(5, 64)
    encoded = EncodedArray.of(x, kind)
    assert encoded.shape == (5, 64)
    assert encoded.nbytes == encoded.data.nbytes == encoded.T.nbytes
    assert encoded.T.shape == (64, 5)
    assert encoded.T.size == x.size
    assert encoded.decoded("float64").dtype == np.float64
    np.testing.assert_array_equal(encoded.decoded(), blocks.decode(encoded.data, kind))
    np.testing.assert_array_equal(encoded.T.decoded(), encoded.decoded().T)
    assert encoded.T.T.data is encoded.data
    assert repr(encoded.T) == f"EncodedArray(64 x 5, {kind}, transposed)"


@pytest.mark.skipif(backend.cpu is None, reason="needs the C kernels")
@each_kind
def test_a_repacked_matrix_is_still_the_same(kind):
    """Its rows as in the file are dropped and computed again; the transpose shares the memory."""
    encoded = EncodedArray.of(random(21, 64), kind)
    data, other = encoded.data.copy(), encoded.T
    packed = encoded.interleaved()
    assert encoded.interleaved() is packed or kind in ("f16", "bf16")
    assert other.T.interleaved() is packed or kind in ("f16", "bf16")
    for each in (encoded.data, other.data):
        np.testing.assert_array_equal(each, data)
    assert encoded.nbytes == data.nbytes
    product = backend.cpu.stored_product(np.eye(64, dtype=np.float32)[:5], packed, kind, 21, 64)
    assert abs(product - encoded.decoded()[:, :5].T).max() < 0.05


def test_data_that_does_not_fit_is_refused():
    data = EncodedArray.of(random(5, 64), "q8_0").data
    for kind, shape in (("q8_0", (4, 64)), ("q8_0", (5, 32)), ("q4_0", (5, 64))):
        with pytest.raises(ValueError, match=f"of {kind} must be uint8"):
            EncodedArray(kind, data, shape)
    with pytest.raises(ValueError, match="must be uint8"):
        EncodedArray("q8_0", data.astype(np.int16), (5, 64))
    with pytest.raises(ValueError, match=r"interleave its \.T"):
        EncodedArray("q8_0", data, (5, 64)).T.interleaved()


def model_of(kind, **options):
    """(configuration, parameters) of a small model."""
    shape = {"vocab_size": 40, "context": 16, "width": 32, "layers": 2, "heads": 2, "hidden": 48}
    config = MODELS[kind].config.small(Dimensions(**shape | {"head": next(iter(MODELS[kind].config.HEADS))} | options))
    return config, config.model.init(config, seed=1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bart", "transformer"])
def test_the_matrices_of_a_model_are_encoded_and_nothing_else(family):
    config, tree = model_of(family)
    encoded = dict(params.leaves(encoded_tree(tree, "q8_0", config)))
    decoded = dict(params.leaves(decoded_tree(encoded_tree(tree, "q8_0", config), "float64")))
    for name, leaf in params.leaves(tree):
        assert encoded[name].shape == leaf.shape
        if leaf.ndim == 1 or "position" in name or "wpe" in name or "token_type" in name or name.endswith("bias"):
            np.testing.assert_array_equal(encoded[name], leaf)
        else:
            columns = leaf.shape[0] if name.endswith(config.TRANSPOSED) else leaf.shape[1]
            assert encoded[name].kind == ("q8_0" if columns % 32 == 0 else "f16"), name
            assert abs(decoded[name] - leaf).max() <= abs(leaf).max() / 127
    assert is_quantized(encoded)
    assert not is_quantized(decoded)


def test_a_decoded_tree_computes_nearly_the_same_loss():
    """The difference of q8_0 is some thousandths of a nat; that of matrices in a wrong order is far larger."""
    for family in ("llama", "gpt2"):
        config, tree = model_of(family)
        tree = params.rebuild(tree, (leaf * 8 if leaf.ndim == 2 else leaf for _, leaf in params.leaves(tree)))
        ids = np.random.default_rng(2).integers(40, size=(4, 16))
        exact, _ = config.model.loss(ids, ids, tree, config)
        stored, _ = config.model.loss(ids, ids, decoded_tree(encoded_tree(tree, "q8_0", config)), config)
        other, _ = config.model.loss(ids, ids, decoded_tree(encoded_tree(tree, "q4_0", config)), config)
        assert 0 < abs(float(stored - exact)) < abs(float(other - exact)) < 0.5


def test_a_matrix_that_cannot_be_stored_is_named():
    config, tree = model_of("llama")
    tree["model"]["layers"][1]["mlp"]["up_proj"]["weight"][3, 5] = np.nan
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight cannot be stored as q4_0: .*repair"):
        encoded_tree(tree, "q4_0", config)


@pytest.mark.parametrize("kind", blocks.FORMATS)
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=8))
@example(bits=[0x7BFF, 0xFBFF, 0x7F7F, 0xFF7F])
@example(bits=[0xFC00])
@example(bits=[0x7F80])
def test_floats_that_are_not_finite_are_found_by_their_bits(kind, bits):
    form = blocks.FORMATS[kind]
    data = np.full((len(bits), form.bytes), 255, np.uint8)
    data[:, :2] = np.array(bits, "<u2")[:, None].view(np.uint8)
    encoded = EncodedArray(kind, data, (len(bits), form.numbers))
    with np.errstate(all="ignore"):
        assert encoded.is_finite() == bool(np.isfinite(encoded.scales()).all())
        assert encoded.is_finite() == bool(np.isfinite(encoded.decoded("float64")).all())
