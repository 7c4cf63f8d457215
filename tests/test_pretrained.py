"""Folders with models, ours and those that other programs write differently; and what pretraining hides from a model.
"""
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pyllama import params, pretrained
from pyllama.errors import UserError
from pyllama.models import MODELS, bart
from pyllama.text.corruption import corrupt, mask_tokens
from tests.test_models import CASES, randomized

SAVED = {name: case for name, case in CASES.items() if case[1].TYPE in MODELS}
each_saved = pytest.mark.parametrize("name", SAVED)


def folder(path, config, tensors):
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, path / "model.safetensors")
    return path


@each_saved
def test_a_model_comes_back_as_it_was_saved(name, tmp_path):
    model, c, *_ = SAVED[name]
    tree = randomized(model, c)
    stored = c.to_dict() | {"id": "x"}
    found = pretrained.load(folder(tmp_path, stored, dict(params.leaves(tree))), dtype="float64")
    assert found.config.to_dict() == stored
    assert found.config.model is model
    got = dict(params.leaves(found.params))
    for key, a in params.leaves(tree):
        np.testing.assert_array_equal(got[key], a, err_msg=key)


def bare(tensors, prefix):
    return {name.removeprefix(prefix): a for name, a in tensors.items()}


def old_norms(tensors):
    return {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
            for name, a in tensors.items()}


WRITTEN = {                                     # case -> as other programs write the same
    "gpt2": lambda t: bare(t, "transformer.") | {"h.0.attn.bias": np.ones((1, 1, 7, 7)),
                                                 "h.1.attn.masked_bias": np.ones(1),
                                                 "lm_head.weight": t["transformer.wte.weight"]},
    "llama-tied": lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]},
    "bart": lambda t: t | {"lm_head.weight": t["model.shared.weight"],
                           "model.encoder.embed_tokens.weight": t["model.shared.weight"],
                           "model.decoder.embed_tokens.weight": t["model.shared.weight"]},
    "transformer": lambda t: bare(t, "model."),
    "bart-classification": lambda t: bare(t, "model."),
    "bert": lambda t: old_norms(t) | {
        "cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": t["cls.predictions.bias"], "cls.seq_relationship.weight": np.ones((2, 12)),
        "cls.seq_relationship.bias": np.ones(2), "bert.pooler.dense.weight": np.ones((12, 12)),
        "bert.pooler.dense.bias": np.ones(12), "bert.embeddings.position_ids": np.arange(7)[None]},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_others_write_is_the_same_model(name, tmp_path):
    model, c, *_ = SAVED[name]
    tensors = dict(params.leaves(randomized(model, c)))
    found = pretrained.load(folder(tmp_path, c.to_dict(), WRITTEN[name](tensors)), dtype="float64")
    for key, a in params.leaves(found.params):
        np.testing.assert_array_equal(a, tensors[key], err_msg=key)


def test_a_bart_without_a_bias_has_one_of_zeros(tmp_path):
    model, c, *_ = SAVED["bart"]
    tensors = dict(params.leaves(randomized(model, c)))
    del tensors["final_logits_bias"]
    found = pretrained.load(folder(tmp_path, c.to_dict(), bare(tensors, "model.")))
    assert not found.params["final_logits_bias"].any()


def test_another_head_does_not_hide_that_the_body_is_missing(tmp_path):
    model, c, *_ = SAVED["bert"]
    tensors = dict(params.leaves(randomized(model, c)))
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    with pytest.raises(UserError, match=r"layer\.1\.output\.dense\.weight is missing.* give the config\.json"):
        pretrained.load(folder(tmp_path, c.to_dict(), tensors), change=lambda c: replace(c, head="tagging"))


def test_padding_is_no_end_for_a_bart_that_classifies():
    """Whatever stands there."""
    model, c, (ids, _), _ = SAVED["bart-classification"]
    p = randomized(model, c)
    short, _ = bart.logits(ids[:1, :4], p, c)
    longer = np.concatenate([ids[:1, :4], [[c.eos_token_id] * 2]], axis=1)
    padded, _ = bart.logits(longer, p, c, mask=np.array([[1, 1, 1, 1, 0, 0]]))
    np.testing.assert_allclose(padded, short, rtol=1e-10)


def test_another_head_keeps_the_body_and_says_what_is_new(tmp_path):
    model, c, *_ = SAVED["bert"]
    tensors = dict(params.leaves(randomized(model, c)))
    path = folder(tmp_path, c.to_dict(), tensors)
    found = pretrained.load(path, dtype="float64", change=lambda c: replace(c, head="classification", num_labels=5))
    got = dict(params.leaves(found.params))
    assert got["classifier.weight"].shape == (5, 12)
    assert {name for name in got if name not in tensors} == {"classifier.weight", "classifier.bias",
                                                             "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    for name in got.keys() & tensors.keys():
        np.testing.assert_array_equal(got[name], tensors[name], err_msg=name)
    new, left_out = found.notes
    assert new.startswith("initialized at random: ")
    assert {*new.partition(": ")[2].split(", ")} == got.keys() - tensors.keys()
    assert {*left_out.partition("dropped: ")[2].split(", ")} == tensors.keys() - got.keys()


@pytest.mark.parametrize(("absent", "message"), [
    (["bert.embeddings.LayerNorm.weight"], r"^bert\.\S+\.weight is missing in the weights; give"),
    (["bert.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.weight"],
     r"^bert\.\S+ is missing in the weights, and 1 more; give")])
def test_another_head_needs_the_body(tmp_path, absent, message):
    model, c, *_ = SAVED["bert"]
    tensors = dict(params.leaves(randomized(model, c)))
    for name in absent:
        del tensors[name]
    path = folder(tmp_path, c.to_dict(), tensors)
    with pytest.raises(UserError, match=message):
        pretrained.load(path, change=lambda c: replace(c, head="classification", num_labels=5))


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "mamba"}, "contains a 'mamba' model .*, which is not supported; the supported types are llama, "),
    ({"hidden_act": "mish"}, "hidden_act is 'mish'; it must be one of relu, gelu"),
    ({"is_decoder": True}, "is_decoder = true; bert supports only false"),
    ({"hidden_size": None}, "hidden_size = null, but it must be a whole number; fix it"),
    ({"max_position_embeddings": 10**12}, "= 1000000000000, but it must be below 2,147,483,648 in magnitude; fix it"),
    ({"layer_norm_eps": "small"}, "layer_norm_eps = 'small', but it must be a number; fix it"),
    ({"num_attention_heads": 5}, "hidden_size 12 is not a multiple of num_attention_heads 5; change one"),
    ({"intermediate_size": 21}, r"has shape \(20, 12\) in the weights but \(21, 12\) by the configuration"),
])
def test_what_is_another_model_is_refused(changes, message, tmp_path):
    model, c, *_ = SAVED["bert"]
    path = folder(tmp_path, c.to_dict() | changes, dict(params.leaves(randomized(model, c))))
    with pytest.raises(UserError, match=message):
        pretrained.load(path)


# What pretraining hides

MASK, END = 77, 9
texts = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@given(text=texts, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_what_a_corrupted_text_still_shows_is_there_in_the_order_of_its_sentences(text, share, seed):
    source = corrupt(text, np.random.default_rng(seed), MASK, share=share)
    shown = [token for token in source if token != MASK]
    rest = iter(text)
    assert all(token in rest for token in shown), "no sentence ends, so that their order is the text's"
    assert len(text) - len(shown) >= share * len(text) - 1e-9
    assert share or source == text
    assert source == corrupt(text, np.random.default_rng(seed), MASK, share=share)


@given(text=texts, seed=st.integers(0, 9))
def test_sentences_change_places_and_stay_whole(text, seed):
    got = corrupt(text, np.random.default_rng(seed), MASK, sentence_ends=[END], share=0.0)

    def sentences(ids):
        return sorted("".join(map(str, ids)).replace("9", "9 ").split())

    assert sorted(got) == sorted(text)
    if text[-1] == END:                         # else the last one, which has no end, may stand before another
        assert sentences(got) == sentences(text)


def test_spans_have_the_requested_lengths():
    """Of 20,000 tokens 30 % are hidden by spans of mean length 3, of which one in e³ has no length but a mask.  A span
    touches another, whose mask it shares, with a probability of at most 0.3 (1 + 1/3) = 0.4."""
    text = [1] * 20000
    source = corrupt(text, np.random.default_rng(0), MASK)
    hidden, masks = len(text) - source.count(1), source.count(MASK)
    assert 6000 <= hidden < 6020
    assert 3 * (1 - np.exp(-3)) < hidden / masks < 3 / (1 - 0.4)
    with pytest.raises(UserError, match=r"share is 2.0 and mean_span 3.0; give a share from 0 to 1"):
        corrupt(text, np.random.default_rng(0), MASK, share=2.0)


def test_masks_fall_80_10_10():
    """Of 100,000 tokens, 15 % of those that are not special; each share within four of its standard deviations."""
    ids = np.random.default_rng(1).integers(0, 100, (100, 1000))
    read, labels = mask_tokens(ids, np.random.default_rng(2), MASK, 1000, special=[0, 1])
    chosen, special = labels != -100, np.isin(ids, [0, 1])
    assert (labels[chosen] == ids[chosen]).all()
    assert (read[~chosen] == ids[~chosen]).all()
    assert not (chosen & special).any()
    for count, of, p in ((chosen.sum(), (~special).sum(), 0.15), ((read[chosen] == MASK).sum(), chosen.sum(), 0.8),
                         ((read[chosen] == ids[chosen]).sum(), chosen.sum(), 0.1)):
        slack = 4 * np.sqrt(of * p * (1 - p)) + 0.02 * of * (p > 0.15 or p == 0.1)
        assert abs(count - of * p) < slack
    other = chosen & (read != MASK) & (read != ids)
    assert 90 < np.unique(read[other]).size <= 1000
