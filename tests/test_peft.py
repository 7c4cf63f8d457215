"""Adapter folders of PEFT compute here what they compute there: golden numbers made by tests/golden/make_peft.py."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pyllama
from pyllama import params, pretrained
from pyllama.errors import UserError
from pyllama.formats import peft, peft_config
from pyllama.models import adapters
from pyllama.models.adapters import Adapter
from tests.golden.make_hf import weight
from tests.golden.make_peft import CASES
from tests.test_pretrained import folder

GOLDEN = Path(__file__).parent / "golden"
STORED = json.loads((GOLDEN / "peft.json").read_text())
ARRAYS = load_file(GOLDEN / "peft.safetensors")
each_case = pytest.mark.parametrize("name", STORED)


def close(got, wanted, name):
    """Within 1e-13 of the largest entry, or of 1: 450 roundings of float64.

    make_peft.py lets transformers compute in float64 throughout.
    """
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13 * max(1, np.abs(wanted).max()), err_msg=name)


def base_of(name, place):
    """The folder of a case's base model, in float64."""
    return folder(place, STORED[name]["config"], {key: weight(key, shape) for key, shape in
                                                  STORED[name]["shapes"].items()})


def inputs_of(name):
    inputs = {key: np.array(values) for key, values in STORED[name]["inputs"].items()}
    return inputs["input_ids"], inputs["attention_mask"], inputs["labels"]


def stated(name, place, dora=None):
    """(the base, the tree with the adapter beside its matrices, the adapter's settings)"""
    model = pretrained.load(base_of(name, place), dtype="float64")
    stored, tensors = peft.read(GOLDEN / "peft" / name)
    lora = peft_config.lora_of(stored, GOLDEN)
    lora = replace(lora, dora=dora) if lora.dora and dora else lora
    arrays = peft_config.fitted(lora, tensors, model.params, model.config, "float64")
    return model, adapters.attached(model.params, arrays), lora


@each_case
def test_logits_and_gradients_are_those_of_peft(name, tmp_path):
    model, tree, _ = stated(name, tmp_path, "detached")
    arrays = {key.removeprefix(f"{name}/"): a for key, a in ARRAYS.items() if key.startswith(f"{name}/")}
    ids, mask, labels = inputs_of(name)
    z, _ = model.config.model.logits(ids, tree, model.config, mask=mask)
    seen = mask != 0 if z.ndim == 3 else ...                    # padding may have any logits
    close(z[seen], arrays.pop("logits")[seen], "logits")
    loss, back = model.config.model.loss(ids, labels, tree, model.config, mask=mask)
    assert loss == pytest.approx(STORED[name]["loss"], rel=1e-13)
    got = dict(params.leaves(back()))
    assert len(arrays) >= 4
    for key, a in arrays.items():
        close(got[key.removeprefix("gradient/")], a, key)


@pytest.mark.parametrize("name", ["dora", "all", "transposed_dora", "head"])
def test_the_exact_gradient_is_another_one(name, tmp_path):
    """How far PEFT's is from it: the adapters here are as large as the weights."""
    model, tree, _ = stated(name, tmp_path)
    ids, mask, labels = inputs_of(name)
    got = dict(params.leaves(model.config.model.loss(ids, labels, tree, model.config, mask=mask)[1]()))
    theirs = {key.removeprefix(f"{name}/gradient/"): a for key, a in ARRAYS.items()
              if key.startswith(f"{name}/gradient/") and "lora_B" in key}
    apart = sum(np.square(got[key] - a).sum() for key, a in theirs.items()) ** 0.5
    assert apart > 0.05 * sum(np.square(a).sum() for a in theirs.values()) ** 0.5


@each_case
def test_a_folder_is_loaded_with_its_base_and_merged(name, tmp_path):
    base = base_of(name, tmp_path)
    place = tmp_path / "adapter"
    place.mkdir()
    stored, tensors = peft.read(GOLDEN / "peft" / name)
    (place / peft.CONFIG).write_text(json.dumps(stored | {"base_model_name_or_path": str(base)}))
    save_file(peft.to_peft(tensors), place / peft.MODEL)
    model = pyllama.load(place, dtype="float64")
    ids, mask, _ = inputs_of(name)
    z, _ = model.logits(ids, mask=mask)
    seen = mask != 0 if z.ndim == 3 else ...
    close(z[seen], ARRAYS[f"{name}/logits"][seen], "logits")
    assert list(model.adapters) == ["default"]


@each_case
def test_what_is_written_is_what_peft_writes(name, tmp_path):
    model, _, lora = stated(name, tmp_path)
    stored, tensors = peft.read(GOLDEN / "peft" / name)
    peft_config.write(tmp_path / "written", Adapter(lora, tensors), model.config)
    ours, theirs = json.loads((tmp_path / "written" / peft.CONFIG).read_text()), stored
    for settings in (ours, theirs):
        settings["target_modules"] = sorted(settings["target_modules"])
        settings["task_type"] = None
    assert ours.items() <= theirs.items()
    again, written = load_file(GOLDEN / "peft" / name / peft.MODEL), load_file(tmp_path / "written" / peft.MODEL)
    assert again.keys() == written.keys()
    assert all((written[key] == a).all() for key, a in again.items())


def test_every_case_has_numbers():
    assert STORED.keys() == CASES.keys()


# --- several adapters on one base -------------------------------------------------------------------------------------

def test_adapters_are_switched_by_name(tmp_path):
    model = pretrained.load(base_of("lora", tmp_path), dtype="float64")
    ids, mask, _ = inputs_of("lora")
    before, _ = model.logits(ids, mask=mask)
    for name in ("lora", "dora"):
        model.add_adapter(name, GOLDEN / "peft" / name)
    for name in ("dora", "lora", "dora"):
        model.use(name)
        close(model.logits(ids, mask=mask)[0][mask != 0], ARRAYS[f"{name}/logits"][mask != 0], name)
    model.use(None)
    np.testing.assert_array_equal(model.logits(ids, mask=mask)[0], before)
    with pytest.raises(UserError, match="there is no adapter 'other'; give one of lora, dora"):
        model.use("other")


# --- adapters that do not fit -----------------------------------------------------------------------------------------

def changed(tmp_path, tensors=None, **settings):
    """A copy of the folder "dora" with other settings or tensors."""
    place = tmp_path / "changed"
    place.mkdir()
    stored, arrays = peft.read(GOLDEN / "peft/dora")
    (place / peft.CONFIG).write_text(json.dumps(stored | settings))
    save_file(peft.to_peft(arrays | (tensors or {})), place / peft.MODEL)
    return place


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("change", "message"), [
    (dict(tensors={f"{Q}.lora_A.weight": np.zeros((2, 9))}),
     f"{Q}.lora_A.weight has shape [2, 9] in the adapter, but its base needs [2, 8]; give the base that it was trained "
     f"on"),
    (dict(tensors={"model.layers.7.self_attn.q_proj.lora_A.weight": np.zeros((2, 8))}),
     "the adapter has model.layers.7.self_attn.q_proj, which its base model lacks; give the base that it was trained "
     "on"),
    (dict(tensors={"score.weight": np.zeros((2, 8))}),
     "score.weight is in the adapter but not in the base; give the base that the adapter was trained on"),
    (dict(use_dora=False), "is in the adapter but not in the base"),
    (dict(bias="all"), "has bias = 'all', which is not supported; merge the adapter with PEFT"),
    (dict(peft_type="LOHA"), "has peft_type = 'LOHA', which is not supported"),
    (dict(r="many"), "adapter_config.json is damaged: ValueError"),
])
def test_an_adapter_that_does_not_fit_is_refused(change, message, tmp_path):
    model = pretrained.load(base_of("dora", tmp_path), dtype="float64")
    with pytest.raises(UserError) as caught:
        model.add_adapter("a", changed(tmp_path, **change))
    assert message in str(caught.value)


def test_dropout_is_that_of_training_alone(tmp_path):
    model = pretrained.load(base_of("dora", tmp_path), dtype="float64")
    model.add_adapter("a", changed(tmp_path, lora_dropout=0.5))
    model.use("a")
    ids, mask, _ = inputs_of("dora")
    close(model.logits(ids, mask=mask)[0][mask != 0], ARRAYS["dora/logits"][mask != 0], "logits")


def test_an_adapter_without_its_base_and_a_model_that_is_no_adapter_are_refused(tmp_path):
    with pytest.raises(UserError, match="is an adapter of a model without a name, which is not there; write the path"):
        pyllama.load(GOLDEN / "peft/lora")
    model = pretrained.load(base_of("lora", tmp_path))
    with pytest.raises(UserError, match="is a whole model, not an adapter; load it by itself"):
        model.add_adapter("a", tmp_path)
