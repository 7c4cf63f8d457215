"""Runs that train adapters: what they save, that they resume bit for bit, and what is refused."""
import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import pyllama
from pyllama import params, pretrained
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.formats import peft_config
from pyllama.models.adapters import Adapter, attached, merged
from pyllama.models.init import new_parameters
from pyllama.quantization import EncodedArray
from pyllama.quantization.adapted_base import stored_base
from pyllama.tasks import finetune
from pyllama.training import checkpoint
from pyllama.training.adapting import Adapting, Base, begin
from pyllama.training.fingerprint import fingerprint
from pyllama.training.run import RunPolicy
from pyllama.training.working import rounded_tree, widened_tree

SETTINGS = pyllama.Settings(max_steps=4, batch_size=2, block_size=16, warmup_steps=0, learning_rate=1e-2, shards=2)
TEXT = "The quick brown fox jumps over the lazy dog. " * 30
LORA = Adapting(lora=("q_proj,v_proj",), rank=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, rows and a base model of each kind."""
    place = tmp_path_factory.mktemp("adapting")
    (place / "text.txt").write_text(TEXT)
    (place / "rows.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 10)
    llama = pyllama.create("llama", place / "text.txt", hidden_size=32, num_hidden_layers=1, max_position_embeddings=16)
    llama.save(place / "llama")
    pyllama.create("bert", place / "rows.csv", hidden_size=32, num_hidden_layers=1).save(place / "bert")
    return place


def trained(place, folder, adapting, settings=SETTINGS, steps=None):
    """Train the base in a folder, or stop after so many steps; returns the model."""
    model = pyllama.load(place / "llama")
    records = pyllama.train(model, place / "text.txt", settings, out_dir=folder, adapting=adapting,
                            policy=RunPolicy(save_steps=2, eval_steps=100))
    for record in records:
        if record.step == steps:
            records.close()
            break
    return model


@pytest.mark.parametrize("adapting", [
    LORA, replace(LORA, dora="exact"), replace(LORA, lora=("all-linear",), dora="detached", base_dtype="q4_0"),
    replace(LORA, base_dtype="q8_0"), replace(LORA, base_dtype="bfloat16", rslora=True)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_saves_adapters_alone_and_resumes_bit_for_bit(place, tmp_path, adapting, dtype):
    settings = replace(SETTINGS, dtype=dtype)
    model = trained(place, tmp_path / "whole", adapting, settings)
    trained(place, tmp_path / "half", adapting, settings, steps=2)
    assert [record.step for record in pyllama.resume(tmp_path / "half")] == [3, 4]
    whole, half = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "half")
    assert all("lora" in name for name in whole.tensors)
    assert not (whole.folder / checkpoint.MODEL).exists()
    assert whole.optimizer["m"].size == sum(a.size for a in whole.tensors.values())
    for one, other in ((whole.tensors, half.tensors), (whole.optimizer, half.optimizer)):
        assert {name: a.tobytes() for name, a in one.items()} == {name: a.tobytes() for name, a in other.items()}
    assert any(a.any() for name, a in whole.tensors.items() if "lora_B" in name)
    again = pyllama.load(tmp_path / "whole")                    # merged with the base as it was trained beside
    ids = np.arange(8)[None]
    if dtype == "bfloat16":                                     # training rounds the frozen matrices, a load does not
        rounded = widened_tree(rounded_tree(again.base), np.float32)
        again.params = merged(attached(rounded, again.adapters["default"].tensors), again.config)
    np.testing.assert_array_equal(*(each.logits(ids)[0] for each in (model, again)))


def plain(tree):
    """{name: bytes} of a tree's parameters."""
    return {name: (leaf.data if isinstance(leaf, EncodedArray) else leaf).tobytes()
            for name, leaf in params.leaves(tree)}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "q8_0", "q4_0"])
def test_a_base_that_is_stored_while_it_is_read_is_the_same(place, tmp_path, kind):
    model = pyllama.load(place / "llama")
    stored = stored_base(model.params, model.config, kind)
    (tmp_path / "model").mkdir()
    for path in (place / "llama").iterdir():
        shutil.copy(path, tmp_path / "model")
    read = pyllama.load(tmp_path / "model", base_dtype=kind)
    with open(tmp_path / "model" / checkpoint.MODEL, "r+b") as file:        # what is mapped would change
        file.write(bytes((place / "llama" / checkpoint.MODEL).stat().st_size))
    assert plain(read.params) == plain(stored)
    assert fingerprint(read.params) == fingerprint(stored)
    assert plain(stored_base(read.params, model.config, kind)) == plain(stored)


def test_a_base_that_is_stored_while_it_is_read_is_never_whole(tmp_path):
    model = pyllama.create("llama", "python-docs", hidden_size=128, num_hidden_layers=6)
    model.save(tmp_path)
    whole = sum(leaf.nbytes for name, leaf in params.leaves(model.params) if ".layers." in name)
    outside = sum(leaf.nbytes for name, leaf in params.leaves(model.params) if ".layers." not in name)
    peaks = {}
    for kind in (None, "q4_0"):
        tracemalloc.start()
        pyllama.load(tmp_path, base_dtype=kind)
        peaks[kind] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # q4_0 takes 4.5 of 32 bits; a matrix is at most an 18th of the whole, and encoding takes a few copies of it
    assert peaks[None] > whole
    assert peaks["q4_0"] < outside + whole * (4.5 / 32 + 6 / 18)


def test_a_base_dtype_that_does_not_exist_is_refused(place):
    with pytest.raises(UserError, match="base_dtype is 'q2'; it must be one of float32, bfloat16, q8_0, q4_0"):
        pyllama.load(place / "llama", base_dtype="q2")


def test_a_new_head_is_drawn_without_the_rest(place):
    config = pyllama.load(place / "bert").config
    whole = dict(params.leaves(config.model.init(config)))
    drawn = new_parameters(config, "float32", {(config.vocab_size,)})
    kept = {name for name, a in drawn.items() if any(a.strides)}
    assert kept == {name for name, a in whole.items() if a.shape == (config.vocab_size,)}
    wide = new_parameters(config, "float32", {(128, 32)})
    assert all((wide[name] == a).all() for name, a in whole.items() if a.shape == (128, 32))


def test_the_frozen_base_does_not_change(place, tmp_path):
    before = dict(params.leaves(pyllama.load(place / "llama").params))
    model = trained(place, None, LORA)
    after = dict(params.leaves(model.params))
    moved = {name for name, a in before.items() if (a != after[name]).any()}
    assert moved == {f"model.layers.0.self_attn.{name}_proj.weight" for name in "qv"}


def test_a_task_trains_its_head_besides_and_predicts(place, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["finetune", "--task", "classify", "--model", f"{place}/bert", "--data", f"{place}/rows.csv", "--lora",
                 "query,value", "--rank", "4", "--dora", "exact", "--out_dir", f"{run}", "--max_steps", "3",
                 "--learning_rate", "1e-2", "--batch_size", "6", "--warmup_steps", "0"]) == 0
    saved = checkpoint.load(run)
    assert {"classifier.weight", "classifier.bias"} < saved.tensors.keys()
    assert saved.adapter["modules_to_save"] == ["bert.pooler.dense", "classifier"]            # both are new
    assert saved.adapter["task_type"] == "SEQ_CLS"
    assert main(["resume", f"{run}", "--max_steps", "4"]) == 0
    latest = checkpoint.load(run).folder
    answers = pyllama.predict(latest, ["a fine film", "a dull film"])
    _, learner, _ = finetune.load(latest)
    assert main(["merge", f"{run}", f"{tmp_path}/merged"]) == 0
    _, merged, notes = finetune.load(tmp_path / "merged")
    assert pyllama.predict(tmp_path / "merged", ["a fine film", "a dull film"]) == answers
    assert notes == ()
    for (name, a), (_, b) in zip(params.leaves(learner.params), params.leaves(merged.params), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("kind", ["bfloat16", "q8_0", "q4_0"])
def test_the_command_line_trains_beside_a_base_of_few_bits(place, tmp_path, kind):
    run = tmp_path / "run"
    assert main(["train", "--data", f"{place}/text.txt", "--init_from", f"{place}/llama", "--out_dir", f"{run}",
                 "--max_steps", "1", "--block_size", "8", "--batch_size", "2", "--lora", "q_proj", "--rank", "4",
                 "--base_dtype", kind, "--sample_tokens", "2"]) == 0
    assert main(["resume", f"{run}", "--max_steps", "2", "--sample_tokens", "2"]) == 0


def test_a_quantized_file_is_a_base_that_stays_encoded_and_is_found_again(place, tmp_path):
    with pytest.warns(UserWarning, match="the tokenizer has no end token"):
        pyllama.load(place / "llama").quantize("q8_0").save(tmp_path / "base.gguf")
    for dtype in ("float32", "float64"):
        run = tmp_path / dtype
        assert main(["train", "--data", f"{place}/text.txt", "--init_from", f"{tmp_path}/base.gguf", "--out_dir",
                     f"{run}", "--max_steps", "1", "--block_size", "8", "--lora", "q_proj", "--dtype", dtype,
                     "--base_dtype", "q4_0", "--sample_tokens", "2"]) == 0
        assert main(["resume", f"{run}", "--max_steps", "2", "--sample_tokens", "2"]) == 0
        ids = np.arange(4)[None]
        z, z2 = (pyllama.load(run, dtype=kind).logits(ids)[0] for kind in ("float32", "float64"))
        # numbers up to 1, and 32 terms, twice in a row: 32 roundings of 2^-24 each
        np.testing.assert_allclose(z, z2, rtol=0, atol=2 * 32 * 2 ** -24)
    saved = checkpoint.load(tmp_path / "float32")
    base = pretrained.base_params(saved, pretrained.config_of(saved), "float32")
    assert base["model"]["layers"][0]["self_attn"]["q_proj"]["weight"].kind == "q8_0"


def test_an_adapter_that_is_read_for_a_base_has_the_base_that_it_was_trained_beside(place, tmp_path):
    trained(place, tmp_path / "run", replace(LORA, base_dtype="q4_0"))
    model, ids = pyllama.load(place / "llama"), np.arange(8)[None]
    before = model.logits(ids)[0]
    model.add_adapter("few", tmp_path / "run")
    model.use("few")
    np.testing.assert_array_equal(model.logits(ids)[0], pyllama.load(tmp_path / "run").logits(ids)[0])
    model.use(None)
    np.testing.assert_array_equal(model.logits(ids)[0], before)
    with pytest.raises(UserError, match="there is no adapter 'many'; give one of few"):
        model.use("many")


def test_adapters_of_a_model_with_adapters_are_beside_both(place, tmp_path):
    trained(place, tmp_path / "first", LORA)
    model = pyllama.load(tmp_path / "first")
    for _ in pyllama.train(model, place / "text.txt", SETTINGS, out_dir=tmp_path / "second", adapting=LORA):
        pass
    again = pyllama.load(tmp_path / "second")
    for (name, a), (_, b) in zip(params.leaves(model.params), params.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_run_of_adapters_is_read_in_bfloat16_and_not_if_it_is_damaged(place, tmp_path):
    trained(place, tmp_path / "run", LORA)
    model = pyllama.load(tmp_path / "run", dtype="bfloat16")
    assert model.params["model"]["layers"][0]["self_attn"]["q_proj"]["weight"].kind == "bf16"
    saved = checkpoint.load(tmp_path / "run")
    saved.tensors["model.layers.0.self_attn.q_proj.lora_B.weight"][0, 0] = np.nan
    lora = peft_config.lora_of(saved.adapter, saved.folder)
    peft_config.write(tmp_path / "nan", Adapter(lora, saved.tensors, f"{place}/llama"), model.config)
    with pytest.raises(UserError, match="are NaN or infinite"):
        pyllama.load(tmp_path / "nan")


def test_a_model_that_was_trained_in_place_has_no_place_any_more(place, tmp_path):
    """A run of adapters would find the weights at its path, which are others."""
    model = pyllama.load(place / "llama")
    for _ in pyllama.train(model, place / "text.txt", SETTINGS):
        pass
    with pytest.raises(UserError, match="must have a place of its own"):
        next(pyllama.train(model, place / "text.txt", SETTINGS, out_dir=tmp_path / "run", adapting=LORA))


def test_a_step_of_adapters_is_not_explained_as_one_of_a_whole_model(place, tmp_path, capsys):
    trained(place, tmp_path / "run", LORA)
    assert main(["explain", f"{tmp_path}/run", "--text", "The fox", "--out", f"{tmp_path}/page.html"]) == 2
    assert "has adapters, but a step of a whole model is explained; merge them" in capsys.readouterr().err


def test_a_base_that_has_changed_is_refused(place, tmp_path):
    base = pyllama.load(place / "llama")
    base.save(tmp_path / "base")
    for _ in pyllama.train(pyllama.load(tmp_path / "base"), place / "text.txt", SETTINGS, adapting=LORA,
                           out_dir=tmp_path / "run"):
        pass
    base.params["model"]["norm"]["weight"][0] += 1e-3
    base.save(tmp_path / "base")
    for use in (lambda: pyllama.load(tmp_path / "run"), lambda: list(pyllama.resume(tmp_path / "run", max_steps=9))):
        with pytest.raises(UserError, match="the base model is not the one that the adapter was trained on"):
            use()
    (tmp_path / "base/config.json").rename(tmp_path / "base/other")
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    (tmp_path / "base").rmdir()
    with pytest.raises(UserError, match="is not there; write the path of its base model into adapter_config"):
        pyllama.load(tmp_path / "run")


def test_an_adapter_with_a_head_that_the_base_lacks_is_one_of_another_base(place, tmp_path):
    for _ in pyllama.finetune(pyllama.load(place / "bert"), place / "rows.csv", "classify",
                              replace(SETTINGS, block_size=128, max_steps=1), out_dir=tmp_path / "run",
                              adapting=Adapting(lora="query", rank=2)):
        pass
    with pytest.raises(UserError, match="the base model is not the one that the adapter was trained on"):
        pyllama.load(place / "llama").add_adapter("other", tmp_path / "run")


def test_a_fingerprint_is_that_of_names_shapes_and_numbers():
    tree = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    first = fingerprint(tree)
    assert fingerprint({**tree, "a": np.ones((2, 3))}) == first             # float64 of the same numbers
    assert fingerprint(tree, but={"b"}) == fingerprint({"a": tree["a"]}) != first
    for other in ({**tree, "a": np.ones((3, 2), np.float32)}, {**tree, "b": np.float32([0, 1e-30])},
                  {"a": tree["a"], "c": tree["b"]}):
        assert fingerprint(other) != first


@pytest.mark.parametrize(("flags", "message"), [
    (["--lora", "q_proj"], "lora trains adapters of a trained model, but this one starts from scratch"),
    (["--base_dtype", "q4_0"], "base_dtype has no effect without adapters; set lora"),
    (["--rank", "3"], "rank has no effect without adapters"),
    (["--init_from", "{base}", "--lora", "query"], "lora names 'query', but the layers of this model have no such"),
    (["--init_from", "{base}", "--lora", "q_proj", "--rank", "99"],
     "rank is 99, but model.layers.0.self_attn.q_proj is 32 x 32 and has no more than 32; make rank smaller"),
    (["--init_from", "{base}", "--lora", "q_proj", "--rank", "0"], "rank is 0; it must be at least 1"),
    (["--init_from", "{base}", "--lora", "q_proj", "--lora_alpha", "0"], "lora_alpha is 0.0; it must be positive"),
    (["--init_from", "{base}", "--lora", "q_proj", "--freeze", "lm_head"], "freeze has no effect with lora"),
])
def test_what_does_not_fit_is_one_sentence(place, tmp_path, capsys, flags, message):
    words = [word.format(base=place / "llama") for word in flags]
    assert main(["train", "--data", f"{place}/text.txt", "--out_dir", f"{tmp_path}/run", "--max_steps", "1",
                 "--block_size", "8", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_model_without_a_place_is_not_adapted_in_a_run_that_is_saved(place, tmp_path):
    model = pyllama.create("llama", place / "text.txt", hidden_size=32, num_hidden_layers=1)
    with pytest.raises(UserError, match="must have a place of its own; save the model and load it from there"):
        next(pyllama.train(model, place / "text.txt", SETTINGS, out_dir=tmp_path / "run", adapting=LORA))


def test_gradients_and_state_are_those_of_the_adapters(place):
    model = pretrained.load(place / "llama")
    state = begin(model.config, SETTINGS, LORA, Base(model.params, ""))
    assert state.flat.size == 2 * 4 * (32 + 32)
    assert state.optimizer.m.size == state.flat.size
    kept = dict(params.leaves(state.p))
    assert all(kept[name] is a for name, a in params.leaves(model.params))      # no copy of the base


def test_a_merge_of_a_whole_model_is_refused(place, tmp_path, capsys):
    assert main(["merge", f"{place}/llama", f"{tmp_path}/merged"]) == 2
    assert "is a whole model, so there is nothing to merge; give a run of adapters" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    trained(place, tmp_path / "run", LORA)
    assert main(["merge", f"{tmp_path}/run", f"{tmp_path}/merged", "--base", f"{place}/llama"]) == 0
    assert json.loads((tmp_path / "merged/config.json").read_text())["hidden_size"] == 32
    capsys.readouterr()
    shutil.copytree(checkpoint.load(tmp_path / "run").folder, tmp_path / "adapter",
                    ignore=lambda _, names: {name for name in names if not name.startswith(("adapter", "config"))})
    assert main(["merge", f"{tmp_path}/adapter", f"{tmp_path}/adapter"]) == 2        # it would still be read as one
    assert "contains an adapter, which a saved model would damage" in capsys.readouterr().err
    assert main(["merge", f"{tmp_path}/run", f"{tmp_path}/merged.gguf"]) == 0       # notes are lines, not warnings
    assert capsys.readouterr().out.startswith("the tokenizer has no end token")
