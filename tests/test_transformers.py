"""Folders of transformers compute here what they compute there: golden numbers made by tests/golden/make_hf.py."""
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pyllama import params, pretrained
from tests.golden.make_hf import CASES, weight
from tests.test_pretrained import folder

GOLDEN = Path(__file__).parent / "golden"
STORED = json.loads((GOLDEN / "hf.json").read_text())
ARRAYS = load_file(GOLDEN / "hf.safetensors")


def labels_of(inputs):
    """The labels as our losses take them."""
    if "start_positions" in inputs:
        return np.stack([inputs["start_positions"], inputs["end_positions"]], axis=1)
    return inputs.get("labels")


def close(got, wanted, name):
    """Within 1e-5 of the largest entry, or of 1: some 50 roundings of float32."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()), err_msg=name)


@pytest.mark.parametrize("name", STORED)
def test_logits_and_gradients_are_those_of_transformers(name, tmp_path):
    case = STORED[name]
    arrays = {key.removeprefix(f"{name}/"): a for key, a in ARRAYS.items() if key.startswith(f"{name}/")}
    inputs = {key: np.array(values) for key, values in case["inputs"].items()}
    tensors = {key: weight(key, shape).astype("float32") for key, shape in case["shapes"].items()}
    model = pretrained.load(folder(tmp_path, case["config"], tensors))
    assert model.notes == ()
    ids, mask, labels = inputs["input_ids"], inputs.get("attention_mask"), labels_of(inputs)
    options = {"labels": labels} if "decoder_input_ids" in inputs else {}
    if model.config.head == "none":
        x, _ = model.config.model.hidden(ids, model.params[model.config.ROOT], model.config, mask=mask)
        return close(x, arrays["logits"], "vectors")
    z, _ = model.logits(ids, mask=mask, **options)
    seen = ... if mask is None or options or z.ndim < 3 else mask != 0         # padding may have any logits
    close(z[seen], arrays["logits"][seen], "logits")
    loss, back = model.loss(ids, labels, mask=mask)
    assert abs(loss - case["loss"]) < 1e-5 * max(1, case["loss"])
    got = dict(params.leaves(back()))
    wanted = {key.removeprefix("gradient/"): a for key, a in arrays.items() if key.startswith("gradient/")}
    assert wanted.keys() <= got.keys() <= wanted.keys() | {"final_logits_bias"}        # a buffer in transformers
    for key, a in wanted.items():
        close(got[key], a, key)


def test_every_case_has_numbers():
    assert STORED.keys() == CASES.keys()
