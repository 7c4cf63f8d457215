"""Files and the names of files and folders are on the disk before anything relies on them."""
import errno
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

import pyllama
from pyllama import files


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """What was forced to the disk and renamed, in order: relative paths, without the numbers of unfinished files."""
    log = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def name(path):
        path = os.path.relpath(path, tmp_path)
        return path.split(".tmp")[0].rsplit(".", 2)[0] if path.endswith(".tmp") else path

    monkeypatch.setattr(os, "fsync", lambda f: (log.append(name(os.readlink(f"/proc/self/fd/{f}"))), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (replace(a, b), log.append(f"-> {name(b)}")))
    monkeypatch.setattr(os, "rename", lambda a, b: (rename(a, b), log.append(f"-> {name(b)}")))
    return log


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")


@needs_proc
def test_a_replaced_file_and_its_name_are_on_the_disk(tmp_path, disk):
    files.rewrite(tmp_path / "file", [b"x"])
    assert disk == [".file", "-> file", "."]


@needs_proc
def test_the_names_of_new_folders_are_on_the_disk(tmp_path, disk):
    assert files.make_folder(tmp_path / "a/b") == [tmp_path / "a/b", tmp_path / "a"]
    assert sorted(disk) == [".", "a"]
    assert files.make_folder(tmp_path / "a/b") == []


@needs_proc
@pytest.mark.parametrize("kind", ["text", "task"])
def test_a_checkpoint_is_named_after_all_that_a_resume_of_it_reads(tmp_path, disk, kind):
    """A power cut keeps what was forced to the disk: the data, the log up to the checkpoint, and their names."""
    run, settings = tmp_path / "run", pyllama.Settings(max_steps=1, batch_size=2, block_size=8)
    if kind == "text":
        model, needed = pyllama.create("llama", "python-docs", hidden_size=8), ["tokens.bin", "tokens.bin.json"]
        list(pyllama.train(model, "python-docs", settings, out_dir=run, validation=0.001))
    else:
        rows, needed = tmp_path / "rows.csv", ["train.jsonl", "dev.jsonl", "test.jsonl"]
        rows.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 10)
        list(pyllama.finetune(pyllama.create("lstm", rows, hidden_size=8), rows, "classify", settings, out_dir=run))
    named = disk.index("-> run/latest")
    for name in needed:
        written = disk.index(f"run/data/.{name}")
        assert disk[written:written + 3] == [f"run/data/.{name}", f"-> run/data/{name}", "run/data"]
        assert written < named
    assert "." in disk[:named]                              # the name of the run's folder, in its parent
    assert "run/log.jsonl" in disk[:disk.index("-> run/checkpoints/step-00000001")]


@pytest.mark.parametrize(("call", "error"), [("fsync", errno.EINVAL), ("fsync", errno.ENOTSUP), ("open", errno.EACCES)])
def test_a_folder_that_cannot_be_forced_to_the_disk_is_written_to_all_the_same(tmp_path, monkeypatch, call, error):
    """Some network file systems refuse to, and so does a folder that one may write but not list."""
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, refuse)
    files.sync(tmp_path)


def test_another_error_of_the_disk_is_raised(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="broken"):
        files.sync(tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_the_pages_of_a_mapped_array_are_given_back_and_read_again(tmp_path):
    def resident():
        status = Path("/proc/self/status").read_text()
        return sum(1024 * int(size) for size in re.findall(r"Rss(?:File|Shmem):\s+(\d+) kB", status))

    path, size = tmp_path / "numbers", 1 << 24
    content = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    mapped = np.memmap(path, np.uint8, mode="c").view(np.ndarray)
    mapped[0] = content[0] ^ 1                                          # before the part that is given back
    part = mapped[5:-7].reshape(-1, 4)
    part.sum()
    before = resident()
    files.give_back(part)
    assert before - resident() > size - 4 * mmap.PAGESIZE
    np.testing.assert_array_equal(part.reshape(-1), content[5:-7])
    assert mapped[0] == content[0] ^ 1
    for other in part.copy(), np.zeros(3), None, mapped[:9]:
        files.give_back(other)
