"""One process at a time writes to a run, and the lock ends with its process."""
import errno
import fcntl
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

import pyllama
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.training import lock
from pyllama.training.lock import RunLock, locked
from pyllama.training.log import read_log

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
FLAGS = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2", "--block_size", "8", "--shards", "1",
         "--eval_tokens", "16", "--max_steps", "4"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 9)
    return path


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 10)
    return path


def in_child(function):
    """(process id, the reading end of a pipe) of a fork that writes a byte when function() returns, and then waits."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        assert os.read(reading, 1) == b"x", "the child failed"
        return child, reading
    try:
        kept = function()                                   # noqa: F841 -- the lock lives as long as the child
        os.write(writing, b"x")
        signal.pause()
    finally:
        os._exit(1)


def kill(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@needs_fork
def test_another_process_is_refused_until_the_owner_dies(tmp_path):
    run = tmp_path / "run"
    child, _ = in_child(lambda: RunLock(run))
    with pytest.raises(UserError, match=rf"^process {child} on .* \(since \d.*\) is writing to .*run; wait for it"):
        RunLock(run)
    kill(child)
    assert json.loads((run / "lock").read_text())["pid"] == child
    with locked(run):
        assert json.loads((run / "lock").read_text())["pid"] == os.getpid()


@needs_fork
def test_a_fork_has_no_lock_and_does_not_keep_its_parent_s(tmp_path):
    def owner_and_its_fork():
        owned = RunLock(tmp_path / "run")
        if not os.fork():
            try:
                owned.check()
            except UserError as error:
                (tmp_path / "message").write_text(str(error))
            owned.release()
            (tmp_path / "pid").write_text(str(os.getpid()))
            os.rename(tmp_path / "pid", tmp_path / "grandchild")
            signal.pause()
        return owned

    child, _ = in_child(owner_and_its_fork)
    while not (tmp_path / "grandchild").exists():
        pass
    with pytest.raises(UserError, match=f"^process {child} on"):
        RunLock(tmp_path / "run")
    kill(child)
    try:
        with locked(tmp_path / "run"):
            assert f"is a fork of {child}, which writes to" in (tmp_path / "message").read_text()
    finally:
        os.kill(int((tmp_path / "grandchild").read_text()), signal.SIGKILL)


def test_a_second_training_in_the_same_process_is_refused(tmp_path):
    """In another thread or the same."""
    refused = []

    def attempt():
        with pytest.raises(UserError, match=r"this process already trains in .*close its generator first"):
            RunLock(tmp_path)
        refused.append(threading.current_thread())

    with locked(tmp_path) as owned:
        attempt()
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        owned.check()
    assert len(set(refused)) == 2
    with locked(tmp_path):
        pass


def test_nothing_stays_of_a_run_that_wrote_nothing(tmp_path):
    with locked(tmp_path / "a/b"):
        assert (tmp_path / "a/b/lock").exists()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a/b"):
        (tmp_path / "a/b/file").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["file"]
    with locked(None) as none, locked(tmp_path / "c", writes=False) as other:
        assert none is other is None
    assert not (tmp_path / "c").exists()


def test_what_killed_processes_left_is_deleted(tmp_path):
    left = ["data/tokens.bin.123.tmp", "data/.tokens.bin.123.456.tmp", "data/.tokens.bin.json.1.2.tmp",
            "data/.train.jsonl.1.2.tmp", ".latest.1.2.tmp", ".log.jsonl.1.2.tmp", ".metrics.json.1.2.tmp"]
    kept = ["data/tokens.bin", "data/notes.tmp", ".mine.1.2.tmp", "log.jsonl", "tmp"]
    (tmp_path / "data").mkdir()
    for name in left + kept:
        (tmp_path / name).touch()
    with locked(tmp_path):
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {*kept, "data", "lock"}


@pytest.mark.parametrize("number", sorted(lock.NO_LOCKS))
def test_a_file_system_without_locks_is_noted(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path) as owned:
        owned.check()
        assert "has no locks: if another process starts to write there, this one stops" in owned.notes[0]
        with locked(tmp_path) as other:
            other.check()
            with pytest.raises(UserError, match=r"already trains in|is writing to"):
                owned.check()
            owned.release()
            other.check()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=rf"cannot write in {tmp_path}/run: {os.strerror(number)}; "):
        RunLock(tmp_path / "run")


def test_every_command_that_writes_a_run_is_refused(tmp_path, text, rows, capsys):
    train = ["train", "--data", str(text), *FLAGS, "--out_dir"]
    finetune = ["finetune", "--task", "classify", "--data", str(rows), "--model", "lstm", "--max_steps", "2",
                "--vocab_size", "300", "--out_dir"]
    assert main([*train, str(tmp_path / "old")]) == 0
    assert main([*finetune, str(tmp_path / "task")]) == 0
    model = pyllama.create("llama", text, hidden_size=8, num_hidden_layers=1)
    settings = pyllama.Settings(max_steps=2, batch_size=2, block_size=8)
    for folder in "old", "task", "new":
        (tmp_path / folder).mkdir(exist_ok=True)
        before = {path: path.read_bytes() for path in (tmp_path / folder).rglob("*") if path.is_file()}
        with locked(tmp_path / folder):
            capsys.readouterr()
            for command in [train, finetune] if folder == "new" else [["resume", "--max_steps", "9"]]:
                assert main([*command, str(tmp_path / folder)]) == 2
                assert "already trains in" in capsys.readouterr().err
            for records in ([pyllama.train(model, text, settings, out_dir=tmp_path / folder),
                             pyllama.finetune(model, rows, "classify", settings, out_dir=tmp_path / folder)]
                            if folder == "new" else [pyllama.resume(tmp_path / folder)]):
                with pytest.raises(UserError, match="already trains in"):
                    next(records)
        assert {path: path.read_bytes() for path in (tmp_path / folder).rglob("*") if path.is_file()} == before


def test_a_run_in_python_keeps_the_lock_until_its_generator_ends(tmp_path, text):
    model = pyllama.create("llama", text, hidden_size=8, num_hidden_layers=1)
    settings = pyllama.Settings(max_steps=4, batch_size=2, block_size=8)
    records = pyllama.train(model, text, settings, out_dir=tmp_path / "run")
    next(records)
    with pytest.raises(UserError, match="already trains in"):
        next(pyllama.train(model, text, settings, out_dir=tmp_path / "run"))
    records.close()
    assert [record.step for record in pyllama.resume(tmp_path / "run")] == [2, 3, 4]
    assert not (tmp_path / "run/lock").exists()


def delete(run):
    shutil.rmtree(run)


def move(run):
    run.rename(run.with_name("moved"))


def replace(run):
    """As when another run starts in the place of a deleted one."""
    delete(run)
    run.mkdir()
    (run / "lock").write_text('{"pid": 1, "host": "other"}')


def delete_log(run):
    (run / "log.jsonl").unlink()


def replace_log(run):
    """As an editor does."""
    (run / "other").write_text("")
    (run / "other").rename(run / "log.jsonl")


@pytest.mark.parametrize("harm", [delete, move, replace, delete_log, replace_log])
@pytest.mark.parametrize("stop", ["step", "close"])
def test_a_run_whose_files_vanish_does_not_end_well(tmp_path, text, harm, stop):
    run = tmp_path / "run"
    model = pyllama.create("llama", text, hidden_size=8, num_hidden_layers=1)
    settings = pyllama.Settings(max_steps=4, batch_size=2, block_size=8)
    records = pyllama.train(model, text, settings, out_dir=run)
    next(records)
    harm(run)
    left = sorted(str(path) for path in run.parent.rglob("*"))
    if stop == "close" and harm in (delete_log, replace_log):
        records.close()                                     # a checkpoint, and a log that a resume begins again
        assert [record.step for record in pyllama.resume(run)] == [2, 3, 4]
        assert [line["step"] for line in read_log(run)] == [2, 3, 4]
        return
    with pytest.raises(UserError, match=r"was deleted(, moved)? or replaced during the run"):
        next(records) if stop == "step" else records.close()
    assert [path for path in sorted(str(path) for path in run.parent.rglob("*")) if Path(path).name != "lock"] == \
        [path for path in left if Path(path).name != "lock"]


def test_a_relative_folder_stays_where_it_was(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = pyllama.create("llama", text, hidden_size=8, num_hidden_layers=1)
    settings = pyllama.Settings(max_steps=2, batch_size=2, block_size=8)
    records = pyllama.train(model, text, settings, out_dir="run")
    next(records)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    next(records)
    records.close()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "run/latest").read_text() == "step-00000002\n"
