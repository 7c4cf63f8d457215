"""Checkpoints: what is saved is what is loaded, and which of them stay."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pyllama.errors import UserError
from pyllama.training import checkpoint
from tests.checkpoints import FILES, contents, flip, save, save_three, scratch, step_of, steps

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    return save_three(tmp_path)


# What goes in comes out

dtypes = st.sampled_from([*"?bBhHiIlLefd", ">f4", "<i8", ">f8"]).map(np.dtype)
tensors = st.dictionaries(st.text("abc.0é", min_size=1), dtypes.flatmap(lambda dtype: arrays(
    dtype, array_shapes(min_dims=0, min_side=0, max_side=4))), max_size=5)


@given(model=tensors, optimizer=tensors, strided=st.booleans())
def test_tensors_come_back_as_they_were(model, optimizer, strided):
    if strided:
        model = {name: a.T[..., ::-1] if a.ndim else a for name, a in model.items()}
    with scratch() as run:
        folder = checkpoint.save(run, 7, config={}, tensors=model, tokenizer_files={}, optimizer=optimizer, trainer={})
        found = checkpoint.load(run)
        for saved, loaded in (model, found.tensors), (optimizer, found.optimizer), \
                             (model, load_file(folder / "model.safetensors")):
            assert saved.keys() == loaded.keys()
            for name, a in saved.items():
                assert loaded[name].dtype == a.dtype.newbyteorder("=")
                np.testing.assert_array_equal(loaded[name], a, strict=a.dtype.isnative)
                assert loaded[name].flags.writeable


def test_bfloat16_comes_back_as_it_was(tmp_path):
    every = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    checkpoint.save(tmp_path, 1, **contents(1) | {"tensors": {"w": every}})
    loaded = checkpoint.load(tmp_path).tensors["w"]
    assert loaded.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(loaded.view(np.uint16), every.view(np.uint16))


def test_the_rest_comes_back_as_it_was(tmp_path):
    trainer = {"step": 0, "rate": 0.1 + 0.2, "key": 2 ** 80, "words": ["é", None, True], "best": float("inf")}
    config = {"hidden_size": 64, "rope_scaling": {"factor": 8.0}}
    folder = checkpoint.save(tmp_path, 12, **contents(12) | {"trainer": trainer, "config": config,
                                                             "tokenizer_files": {"tokenizer.json": '{"é": 1}'}})
    assert folder == tmp_path / "checkpoints" / "step-00000012"
    for path in tmp_path, folder, str(folder):
        found = checkpoint.load(path)
        assert (found.folder, found.step, found.config, found.notes) == (folder, 12, config, ())
        assert found.trainer == trainer | {"step": 12}
        assert found.tokenizer_path == folder / "tokenizer.json"
        assert found.tokenizer_path.read_text(encoding="utf-8") == '{"é": 1}'


def test_without_a_tokenizer_there_is_none(tmp_path):
    checkpoint.save(tmp_path, 1, **contents(1) | {"tokenizer_files": {}})
    assert checkpoint.load(tmp_path).tokenizer_path is None


def test_the_same_state_gives_the_same_bytes(tmp_path):
    state = contents(5) | {"config": {"a": 1, "b": 2}}
    backwards = {key: dict(reversed(part.items())) if isinstance(part, dict) else part for key, part in state.items()}
    a, b = (checkpoint.save(tmp_path / name, 5, **s) for name, s in (("a", state), ("b", backwards)))
    assert sorted(file.name for file in a.iterdir()) == FILES
    for file in FILES:
        assert (a / file).read_bytes() == (b / file).read_bytes()


def test_hugging_face_finds_the_metadata_it_asks_for(run):
    with safe_open(run / "checkpoints" / "step-00000003" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("length", range(1, 9))
def test_a_memory_map_finds_every_array_aligned(tmp_path, length):
    """Whatever the length of the header, for which the length of a name stands, and the order of the names."""
    odd = {"a" * length: np.zeros(3, np.uint8), "b": np.zeros(1, np.float16), "c": np.zeros(1), "d": np.zeros(1, "f4")}
    folder = checkpoint.save(tmp_path, 1, **contents(1) | {"tensors": odd})
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    assert {name: (8 + length + header[name]["data_offsets"][0]) % a.itemsize for name, a in odd.items()} == \
        dict.fromkeys(odd, 0)


# Which checkpoints there are

def test_latest_and_best_name_their_folders(run):
    assert (run / "latest").read_text() == "step-00000003\n"
    assert (run / "best").read_text() == "step-00000002\n"
    assert checkpoint.best(run) == run / "checkpoints" / "step-00000002"
    assert sorted(path.name for path in run.iterdir()) == ["best", "checkpoints", "latest"]


@given(saves=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=6), keep=st.integers(1, 3))
@settings(max_examples=20)
def test_the_last_few_stay_and_the_best(saves, keep):
    step, saved, best_step = 0, [], None
    with scratch() as run:
        for ahead, best in saves:
            step += ahead
            saved.append(step)
            best_step = step if best else best_step
            save(run, step, keep=keep, best=best)
            stay = {*saved[-keep:], best_step} - {None}
            assert steps(run) == [f"step-{i:08d}" for i in sorted(stay)]
            assert step_of(checkpoint.load(run)) == step
            if best_step:
                assert step_of(checkpoint.load(checkpoint.best(run))) == best_step


def test_steps_beyond_eight_digits_are_in_order(tmp_path):
    for step in 99_999_999, 100_000_000:
        save(tmp_path, step, keep=1)
    assert steps(tmp_path) == ["step-100000000"]


def test_a_step_saved_again_as_it_was_is_left_alone(run):
    folder = run / "checkpoints" / "step-00000003"
    before = folder.stat().st_ino, (folder / "model.safetensors").stat().st_ino
    assert save(run, 3, best=True) == folder
    assert (folder.stat().st_ino, (folder / "model.safetensors").stat().st_ino) == before
    assert steps(run) == ["step-00000001", "step-00000002", "step-00000003"]
    assert checkpoint.best(run) == folder


def test_a_step_saved_again_in_another_way_replaces_the_old_one(run):
    for resumed in 2, 3:
        assert save(run, 3, resumed=resumed).name == f"step-00000003-{resumed}"
        assert steps(run) == ["step-00000001", "step-00000002", f"step-00000003-{resumed}"]
        assert checkpoint.load(run).trainer["resumed"] == resumed
    assert save(run, 2, resumed=0).name == "step-00000002-2"
    assert checkpoint.best(run).name == "step-00000002"                 # the best stays what it was
    assert save(run, 2, resumed=0, best=True).name == "step-00000002-2"
    assert "step-00000002" not in steps(run)


def test_a_step_whose_old_copy_is_damaged_is_saved_anew(run):
    flip(run / "checkpoints" / "step-00000003" / "trainer.json", 5)
    save(run, 3)
    assert checkpoint.load(run).notes == ()


def test_a_run_resumed_from_an_older_checkpoint_keeps_what_it_has_saved(run):
    """The later steps of the abandoned course neither push the new ones out nor stand in for them."""
    for step in 4, 5:
        save(run, step, keep=9)
    assert save(run, 3, keep=1, resumed=1).name == "step-00000003-2"
    assert steps(run) == ["step-00000002", "step-00000003-2", "step-00000004", "step-00000005"]
    folder = run / "checkpoints" / "step-00000003-2"
    flip(folder / "trainer.json", 5)
    assert step_of(checkpoint.load(run)) == 2
    with pytest.raises(UserError, match=r"use .*step-00000002$"):
        checkpoint.load(folder)


def test_leftovers_of_a_killed_save_are_cleared_away(run):
    for name in ".step-00000009", ".step-00000004":
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "config.json").write_text("{")
    (run / ".latest.7.7.tmp").write_text("st")
    assert step_of(checkpoint.load(run)) == 3
    save(run, 4)
    assert steps(run) == ["step-00000002", "step-00000003", "step-00000004"]
    assert not list(run.glob(".*"))


# Hugging Face folders

@pytest.fixture
def hugging_face(run, tmp_path):
    """What a user would copy out of a checkpoint."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in "config.json", "model.safetensors", "tokenizer.json":
        shutil.copy(run / "checkpoints" / "step-00000003" / name, folder)
    return folder


def shard(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(sorted(tensors), 1)}
    for name, place in places.items():
        save_file({name: tensors[name]}, folder / place)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("sharded", [False, True])
def test_a_hugging_face_folder_is_read(hugging_face, sharded):
    if sharded:
        shard(hugging_face)
    found = checkpoint.load(hugging_face)
    assert found[:3] == (hugging_face, 0, {"step": 3})
    assert found[4:] == ({}, {}, hugging_face / "tokenizer.json", (), None)
    assert {name: (a.shape, a.dtype.name) for name, a in found.tensors.items()} == \
        {"a": ((1000,), "float32"), "b": ((), "int64")}
    assert (found.tensors["a"] == 3).all()
    found.tensors["a"][:] = 0


def test_a_broken_hugging_face_folder_is_said(hugging_face):
    model = hugging_face / "model.safetensors"
    data = model.read_bytes()
    model.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: "):
        checkpoint.load(hugging_face)
    model.write_bytes(data)
    index = shard(hugging_face)
    (hugging_face / "model-00002-of-00002.safetensors").rename(hugging_face / "away")
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors cannot be read: "):
        checkpoint.load(hugging_face)
    shutil.copy(hugging_face / "model-00001-of-00002.safetensors", hugging_face / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"lacks b, which model\.safetensors\.index\.json lists"):
        checkpoint.load(hugging_face)
    for wrong in "[]", "{}", '{"weight_map": ["a"]}':
        index.write_text(wrong)
        with pytest.raises(UserError, match=r"index\.json is damaged: it has no weight_map"):
            checkpoint.load(hugging_face)
    index.unlink()
    with pytest.raises(UserError, match="convert the model to safetensors"):
        checkpoint.load(hugging_face)
    (hugging_face / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged: it is not JSON"):
        checkpoint.load(hugging_face)


def test_reading_a_checkpoint_imports_little():
    heavy = "{'scipy', 'tokenizers', 'rich', 'torch'}"
    code = f"import sys, pyllama.training.checkpoint; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
