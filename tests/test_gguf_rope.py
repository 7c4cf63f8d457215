"""The scaling of rotary frequencies in GGUF files comes back, and one that is not ours is refused."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pyllama
from pyllama.errors import UserError
from pyllama.formats import gguf_llama, gguf_rope
from pyllama.formats.gguf_metadata import Metadata
from pyllama.rotary import frequencies
from tests.ggufs import assert_same_scores, changed, config, model_of


def factors_of(base, pairs, scaling):
    return (frequencies(pairs, base, None) / frequencies(pairs, base, scaling)).astype(np.float32)


@given(factor=st.floats(1.5, 64), low=st.floats(0.5, 4), more=st.floats(0.1, 8), original=st.integers(64, 10**6),
       pairs=st.integers(2, 64), base=st.sampled_from([1e4, 5e5]))
@example(factor=8.0, low=1.0, more=3.0, original=8192, pairs=64, base=5e5)
@example(factor=32.0, low=1.0, more=3.0, original=8192, pairs=32, base=5e5)
def test_the_factors_of_any_llama3_scaling_are_read_back(factor, low, more, original, pairs, base):
    """A scaling is accepted if its factors are within 2e-6 of the file's, which are rounded by 6e-8."""
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": low + more,
               "original_max_position_embeddings": original}
    again = gguf_rope.llama3(factors_of(base, pairs, scaling), pairs, base, Metadata("model.gguf", {}))
    np.testing.assert_allclose(frequencies(pairs, base, again), frequencies(pairs, base, scaling), rtol=2.1e-6)


def test_llama3_comes_back_as_it_was(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}
    c = config(hidden_size=256, num_attention_heads=2, num_key_value_heads=2, rope_theta=5e5, rope_scaling=scaling)
    model_of(c).save(tmp_path / "model.gguf")
    assert pyllama.load(tmp_path / "model.gguf").config.rope_scaling == scaling


def test_ntk_is_written_as_another_base(tmp_path):
    """1e-6: the base is stored in float32, and its power is at most 1."""
    model = model_of(config(rope_scaling={"rope_type": "ntk", "factor": 3.0}), "float64")
    model.save(tmp_path / "model.gguf")
    again = pyllama.load(tmp_path / "model.gguf", dtype="float64")
    assert again.config.rope_scaling is None
    assert_same_scores(model, again, 1e-6)


@pytest.mark.parametrize(("keys", "message"), [
    ({"llama.rope.scaling.type": "longrope"}, "scales rotary embeddings by 'longrope', which is not supported"),
    ({"llama.rope.scaling.attn_factor": np.float32(2)}, "attn_factor, which is not supported"),
    ({"llama.rope.scaling.new_kind": np.float32(2)}, r"llama\.rope\.scaling\.new_kind, which is not supported"),
    ({"llama.rope.dimension_count": np.uint32(8)}, "dimension_count = 8, but keys of 16 numbers"),
])
def test_another_scaling_is_refused(keys, message, tmp_path):
    with pytest.raises(UserError, match=message):
        pyllama.load(changed(tmp_path, lambda metadata, tensors: metadata.update(keys)))


def test_an_old_file_scales_linearly(tmp_path):
    path = changed(tmp_path, lambda metadata, tensors: metadata.update({"llama.rope.scale_linear": np.float32(2)}))
    assert pyllama.load(path).config.rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("factors", [[1.0] * 7, [-1.0] * 8, [np.nan] * 8, [4, 1, 1, 1, 1, 1, 1, 4], [0.5] * 8,
                                     [1, 1, 2, 3, 4, 4, 4, 3]])
def test_factors_that_no_llama3_scaling_has_are_refused(factors, tmp_path):
    def add(metadata, tensors):
        tensors["rope_freqs.weight"] = gguf_llama.of_floats(np.array(factors, np.float32))

    with pytest.raises(UserError, match="by factors that are not those of llama3"):
        pyllama.load(changed(tmp_path, add))
