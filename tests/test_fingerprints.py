"""A resume refuses data that changed since the run was started, and a file of tokens that shrinks is an error."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.text import tokens as tokens_module
from pyllama.text.id_file import IdFile, blocks_of
from pyllama.training.log import read_log

OLDER = Path(__file__).parent / "golden" / "runs_0_1_0"
SETTINGS = pyllama.Settings(max_steps=6, batch_size=2, block_size=8, shards=1)
LINES = [f"the quick brown fox jumps over {n} lazy dogs\n" for n in range(30)]


@pytest.fixture
def text_run(tmp_path):
    """A run on documents, split by document, that stopped at step 2."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    flags = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2", "--block_size", "8",
             "--max_steps", "2", "--split", "document", "--eval_tokens", "16"]
    assert main(["train", "--data", str(text), "--out_dir", str(tmp_path / "run"), *flags]) == 0
    return tmp_path / "run"


@pytest.fixture
def task_run(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 20)
    records = pyllama.finetune(pyllama.create("lstm", rows, hidden_size=8), rows, "classify", SETTINGS,
                               out_dir=tmp_path / "run")
    next(records)
    records.close()
    return tmp_path / "run"


def refused(run, file, capsys):
    """The command and the function refuse to resume, name the file, and change nothing."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["resume", str(run), "--max_steps", "19"]) == 2
    message = capsys.readouterr().err
    assert str(file) in message
    with pytest.raises(UserError) as error:
        next(pyllama.resume(run, 19))
    assert str(error.value) in message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    return message


@pytest.mark.parametrize("part", ["train", "dev"])
@pytest.mark.parametrize("change", [
    lambda raw: raw.replace(b"film", b"book", 1), lambda raw: raw.replace(b'"good"', b'"bad"', 1), lambda raw: b"",
    lambda raw: raw + raw, lambda raw: raw[:-1], lambda raw: raw[:len(raw) // 2], lambda raw: b"\xff" + raw,
    lambda raw: b"".join(sorted(raw.splitlines(keepends=True)[1:]))])
def test_rows_that_changed_are_refused(task_run, part, change, capsys):
    path = task_run / f"data/{part}.jsonl"
    path.write_bytes(change(path.read_bytes()))
    assert "has changed since" in refused(task_run, path, capsys)


def test_a_missing_file_of_rows_is_named(task_run, capsys):
    (task_run / "data/train.jsonl").unlink()
    assert "is missing or damaged" in refused(task_run, task_run / "data/train.jsonl", capsys)


def test_documents_that_changed_are_refused(text_run, capsys):
    """Their borders decide which are for validation."""
    path = text_run / "data/tokens.bin.json"
    side = json.loads(path.read_bytes())
    path.write_text(json.dumps(side | {"documents": [*side["documents"][:1], 7, *side["documents"][2:]]}))
    assert f"{path} has changed since" in refused(text_run, path, capsys)


@pytest.mark.parametrize("change", [lambda raw: b"", lambda raw: raw[:-2], lambda raw: raw + b"\0\0",
                                    lambda raw: raw[2:] + raw[:2], lambda raw: raw[:1]])
def test_tokens_that_changed_are_refused(text_run, change, capsys):
    path = text_run / "data/tokens.bin"
    path.write_bytes(change(path.read_bytes()))
    refused(text_run, path, capsys)


def test_other_files_do_not_matter(text_run):
    (text_run / "data/notes.txt").write_text("mine")
    os.utime(text_run / "data/tokens.bin")
    assert main(["resume", str(text_run), "--max_steps", "3"]) == 0


@pytest.mark.parametrize("name", ["classify", "llama"])
def test_a_run_of_0_1_0_is_resumed_with_a_note_once(tmp_path, name, capsys):
    """From then on there are fingerprints.  Of a text that is split by position the old ones suffice."""
    run, note = shutil.copytree(OLDER / name, tmp_path / name), "which kept no fingerprint of its rows"
    for steps in 10, 11:
        assert main(["resume", str(run), "--max_steps", str(steps)]) == 0
        assert (note in capsys.readouterr().out) == (name == "classify" and steps == 10)
    data = run / "data" / ("train.jsonl" if name == "classify" else "tokens.bin.json")
    data.write_text(data.read_text().replace("film", "book") if name == "classify" else
                    json.dumps(json.loads(data.read_text()) | {"documents": [0, 5]}))
    assert "has changed since" in refused(run, data, capsys)


def test_an_empty_file_of_rows_in_a_run_of_0_1_0_is_refused(tmp_path, capsys):
    run = shutil.copytree(OLDER / "classify", tmp_path / "run")
    (run / "data/train.jsonl").write_text("")
    assert main(["resume", str(run), "--max_steps", "19"]) == 2
    assert "data/train.jsonl is missing or damaged (it has no rows)" in capsys.readouterr().err


# A file of tokens

@given(st.data())
def test_a_file_of_ids_reads_like_an_array(data):
    dtype = data.draw(st.sampled_from([np.uint16, np.uint32]))
    want = np.arange(1000, 1000 + data.draw(st.integers(1, 300)), dtype=dtype)[::-1]
    offset = data.draw(st.sampled_from([0, 1024]))
    path = f"/dev/shm/pyllama-{os.getpid()}.bin" if os.path.isdir("/dev/shm") else f"pyllama-{os.getpid()}.bin"
    with open(path, "wb") as file:
        file.write(b"\1" * offset + want.tobytes())
    ids = IdFile(path, dtype, offset)
    os.unlink(path)                                         # it stays readable
    shape = data.draw(st.sampled_from([(), (0,), (1,), (7,), (2, 3), (3, 0, 2)]))
    starts = data.draw(st.lists(st.integers(0, len(want) - 1), min_size=1))
    positions = np.resize(np.concatenate([np.arange(s, min(s + 5, len(want))) for s in starts]), shape)
    assert (len(ids), ids.dtype) == (len(want), want.dtype)
    np.testing.assert_array_equal(ids[positions], want[positions])
    np.testing.assert_array_equal(np.concatenate(list(blocks_of(ids))), want)


def test_blocks_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("pyllama.text.id_file.BLOCK", 4)
    (tmp_path / "ids").write_bytes(np.arange(10, dtype=np.uint16).tobytes())
    for ids in IdFile(tmp_path / "ids", np.uint16), np.arange(10):
        assert [block.tolist() for block in blocks_of(ids)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("size", [0, 3])
def test_a_file_without_whole_ids_is_refused(tmp_path, size):
    (tmp_path / "ids").write_bytes(b"x" * size)
    with pytest.raises(ValueError, match="no whole number of ids"):
        IdFile(tmp_path / "ids", np.uint16)


@pytest.mark.parametrize("given", ["text", "tokens"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_the_checkpoint_is_intact(tmp_path, given, size):
    """A mapped file would kill the process (SIGBUS)."""
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("".join(LINES * 50))
    model = pyllama.create("llama", text, hidden_size=8, num_hidden_layers=1)
    file = run / "data/tokens.bin"
    if given == "tokens":
        tokens_module.prepare(text, model.tokenizer, tmp_path)
        text = file = (tmp_path / "tokens.bin").rename(tmp_path / "other.bin")
    whole, undisturbed = file, list(pyllama.train(model, text, SETTINGS, policy=policy(), out_dir=tmp_path / "whole"))
    model = pyllama.create("llama", tmp_path / "text.txt", hidden_size=8, num_hidden_layers=1)
    records = pyllama.train(model, text, SETTINGS, policy=policy(), out_dir=run)
    next(records)
    whole = file.read_bytes()
    os.truncate(file, size)
    with pytest.raises(UserError, match=r"bin became shorter while it was in use; saved checkpoints are intact"):
        list(records)
    with pytest.raises(UserError):
        next(pyllama.resume(run))
    file.write_bytes(whole)
    list(pyllama.resume(run))
    assert [(line["step"], line["loss"]) for line in read_log(run)] == [(r.step, r.loss) for r in undisturbed]


def policy():
    return pyllama.training.run.RunPolicy(save_steps=1, eval_steps=3, eval_tokens=100)
