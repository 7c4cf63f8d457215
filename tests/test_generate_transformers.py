"""generate() writes what transformers writes: golden texts made by tests/golden/make_generate.py."""
import json
from pathlib import Path

import numpy as np
import pytest

from pyllama import pretrained
from pyllama.generation import generate
from pyllama.generation.config_file import understood
from tests.golden.make_generate import MODELS, PROMPTS, SETTINGS, scaled
from tests.test_pretrained import folder

STORED = json.loads((Path(__file__).parent / "golden/hf_generate.json").read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{name: model} in float64."""
    loaded = {}
    for name, case in STORED.items():
        tensors = {key: scaled(name, key, shape) for key, shape in case["shapes"].items()}
        loaded[name] = pretrained.load(folder(tmp_path_factory.mktemp(name), case["config"], tensors), dtype="float64")
    return loaded


@pytest.mark.parametrize("label", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_texts_and_scores_are_those_of_transformers(name, label, models):
    """The scores within 1e-5 of a number of at most 100: transformers adds in float32."""
    model, options = models[name], SETTINGS[label]
    settings, rules = understood({}, model.config).settings({**options, "output_scores": True})
    results = generate(model.params, model.config, PROMPTS, settings=settings, rules=rules)
    wanted = STORED[name]["texts"][label]
    assert [result.ids for result in results] == [ids for ids, _ in wanted]
    for result, (_, scores) in zip(results, wanted, strict=True):
        got = result.scores if result.score is None else result.score
        np.testing.assert_allclose(got, scores, rtol=1e-5, atol=1e-5)


def test_the_texts_of_all_settings_differ_enough_to_tell():
    """More than half of the settings change a text, and texts end at different lengths."""
    for case in STORED.values():
        texts = {json.dumps([ids for ids, _ in rows]) for rows in case["texts"].values()}
        assert len(texts) > len(SETTINGS) / 2
        assert len({len(ids) for rows in case["texts"].values() for ids, _ in rows}) > 5


def test_every_setting_has_texts():
    assert all(case["texts"].keys() == SETTINGS.keys() for case in STORED.values())
    assert STORED.keys() == MODELS.keys()
