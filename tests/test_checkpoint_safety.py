"""Checkpoints are safe: no kill, power cut, full disk or flipped bit goes unnoticed, or costs more than itself."""
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.files import to_json
from pyllama.training import checkpoint
from tests.checkpoints import FILES, flip, save, save_three, scratch, step_of, steps

ROOT = Path(__file__).parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture
def run(tmp_path):
    return save_three(tmp_path)


# A save that is cut short

def test_everything_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    """A power cut keeps what was forced to the disk: each file, its folder, the rename, and only then `latest`."""
    (tmp_path / "checkpoints").mkdir()
    log = []
    fsync, rename, replace = os.fsync, os.rename, os.replace
    names = {}

    def path_of(handle):
        stat = os.fstat(handle)
        names.update({(p.stat().st_dev, p.stat().st_ino): p.name for p in [tmp_path, *tmp_path.rglob("*")]})
        return re.sub(r"\.\d+\.\d+\.tmp$", "", names[stat.st_dev, stat.st_ino])     # of the process and the thread

    monkeypatch.setattr(os, "fsync", lambda handle: (log.append(path_of(handle)), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append(f"rename {b.name}"), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (log.append(f"rename {b.name}"), replace(a, b)))
    save(tmp_path, 1, best=True)
    assert sorted(log[:6]) == FILES
    assert log[6:] == [".step-00000001", "rename step-00000001", "checkpoints", ".best", "rename best",
                       tmp_path.name, ".latest", "rename latest", tmp_path.name]


def dying(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with scratch() as run:
        done = subprocess.run([sys.executable, ROOT / "tests" / "saving_and_dying.py", arguments[0], run / "run",
                               *arguments[1:]], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


@needs_fork
def test_killed_at_random_moments_the_latest_is_always_whole():
    assert dying("at_random", "100", "0") == 100


@needs_fork
def test_killed_before_any_operation_the_latest_is_always_whole():
    """A save of six files makes, opens or renames more than 20 things, and the five kinds of save each do."""
    assert dying("everywhere") > 100


def test_an_interrupt_leaves_nothing_behind(run, monkeypatch):
    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(run, 4)
    assert steps(run) == ["step-00000001", "step-00000002", "step-00000003"]
    assert step_of(checkpoint.load(run)) == 3


@pytest.mark.parametrize(("number", "cure"), [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota raised"),
                                              (errno.EFBIG, "ulimit -f"), (errno.EIO, "fix that")])
def test_whichever_write_fails_the_error_is_clear_and_the_rest_intact(run, monkeypatch, number, cure):
    """The file system refuses to force the first, second, ... thing to the disk, until all went through."""
    fsync = os.fsync

    def refusal(good):
        """What save() says when all goes well but what comes after so many fsyncs."""
        calls = iter(range(good))

        def failing(handle):
            if next(calls, None) is None:
                raise OSError(number, os.strerror(number))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", failing)
        try:
            save(run, 4, keep=9)
        except UserError as error:
            return str(error)
        return ""

    for good in range(10):          # six files, their folder, its parent, the pointer, and the pointer's folder
        message = refusal(good)
        assert [words for words in ("cannot save step 4", str(run), os.strerror(number), cure,
                                    "earlier checkpoints are intact") if words not in message] == []
        assert steps(run)[:3] == ["step-00000001", "step-00000002", "step-00000003"]
        assert not list(run.rglob(".*"))
        assert checkpoint.load(run).notes == ()
        assert step_of(checkpoint.load(run)) == (4 if good == 9 else 3)
    assert refusal(10) == ""


def test_a_file_size_limit_is_named_and_harms_nothing(run):
    """The model has 4,000 bytes, the optimizer 8,000: the limit of 5,000 lets the one pass and cuts the other."""
    def files():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before, (soft, hard) = files(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))             # Python ignores SIGXFSZ, so writes fail
    try:
        with pytest.raises(UserError, match=r"cannot save step 4 .*File too large; raise the file-size limit"):
            save(run, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files() == before
    assert step_of(checkpoint.load(run)) == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command here")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_harms_nothing(small_disk):
    """Each checkpoint takes seven pages or more of the sixteen; when it is full, one deleted makes room for another."""
    def fill():
        for step in range(1, 4):
            save(small_disk, step)

    with pytest.raises(UserError, match=r"No space left on device; free some space .* earlier checkpoints are intact"):
        fill()
    last = step_of(checkpoint.load(small_disk))
    assert steps(small_disk) == [f"step-{i:08d}" for i in range(1, last + 1)]
    shutil.rmtree(small_disk / "checkpoints" / "step-00000001")
    save(small_disk, last + 1, keep=1)
    assert step_of(checkpoint.load(small_disk)) == last + 1


def test_what_cannot_be_saved_is_said(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot save step 1 in .*checkpoints: File exists"):
        save(tmp_path, 1)
    with pytest.raises(UserError, match="keep is 0"):
        save(tmp_path / "other", 1, keep=0)


# Damage

def assert_noticed(run, file):
    """Loading the run falls back and says so; loading the folder says what to use instead."""
    found = checkpoint.load(run)
    assert step_of(found) == 2
    assert str(file.parent) in found.notes[0]
    assert "damaged" in found.notes[0]
    assert found.notes[1] == f"{found.folder} is used instead"
    with pytest.raises(UserError, match=r"step-00000003/.* is damaged: .*; use .*step-00000002$"):
        checkpoint.load(file.parent)


@pytest.mark.parametrize("name", FILES)
def test_a_shortened_or_missing_file_is_noticed(run, name):
    file = run / "checkpoints" / "step-00000003" / name
    data = file.read_bytes()
    for size in 0, 1, len(data) // 2, len(data) - 1:
        file.write_bytes(data[:size])
        assert_noticed(run, file)
    file.write_bytes(data + b"\n")
    assert_noticed(run, file)
    file.unlink()
    assert_noticed(run, file)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_flipped_bit_is_noticed(name, data):
    with scratch() as run:
        for step in 2, 3:
            save(run, step)
        file = run / "checkpoints" / "step-00000003" / name
        for bit in data.draw(st.lists(st.integers(0, 8 * file.stat().st_size - 1), min_size=1, max_size=5)):
            flip(file, bit)
            assert_noticed(run, file)
            assert name in checkpoint.load(run).notes[0] or name == "checksums.json"
            flip(file, bit)
        assert step_of(checkpoint.load(run)) == 3


def test_no_bit_of_the_checksums_can_flip_unnoticed():
    with scratch() as run:
        file = save(run, 1) / "checksums.json"
        data = file.read_bytes()
        for bit in range(8 * len(data)):
            flip(file, bit)
            assert not checkpoint.is_whole(file.parent), bit
            file.write_bytes(data)


@pytest.mark.parametrize("change", [lambda sums: {}, lambda sums: sums | {"../latest": sums["config.json"]},
                                    lambda sums: list(sums)])
def test_a_list_of_other_files_is_noticed(run, change):
    file = run / "checkpoints" / "step-00000003" / "checksums.json"
    file.write_bytes(to_json(change(json.loads(file.read_bytes()))))
    assert_noticed(run, file)


@pytest.mark.parametrize("text", [None, "", "step-00000009\n", "../other\n", "nonsense", "\0", "\xff" * 9])
def test_a_damaged_pointer_costs_nothing(run, text):
    (run / "latest").unlink()
    if text is not None:
        (run / "latest").write_text(text, encoding="latin-1")
    found = checkpoint.load(run)
    assert step_of(found) == 3
    assert found.notes == (f"{run / 'latest'} does not name an existing checkpoint",
                           f"{found.folder} is used instead")


def test_a_file_without_permission_is_not_called_damaged(run, monkeypatch):
    def forbidding(path, *arguments):
        if Path(path).name == "model.safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, *arguments)

    monkeypatch.setattr(checkpoint, "open", forbidding, raising=False)
    latest = run / "checkpoints" / "step-00000003"
    for path in (run, latest):                              # an older one that can be read would undo steps
        with pytest.raises(UserError, match=r"^cannot read .*/step-00000003/model\.safetensors: Permission denied; ch"):
            checkpoint.load(path)
    assert not checkpoint.is_whole(latest)


def test_nothing_to_load_is_said(tmp_path, run):
    for folder in (run / "checkpoints").iterdir():
        flip(folder / "trainer.json", 0)
    with pytest.raises(UserError, match=r"holds no undamaged checkpoint: .*step-00000003.*-00000002.*-00000001"
                                         r".*; restore one, or train again$"):
        checkpoint.load(run)
    with pytest.raises(UserError, match=r"step-00000001/trainer.json is damaged: .*; there is no undamaged"):
        checkpoint.load(run / "checkpoints" / "step-00000001")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="new holds no checkpoint yet"):
        checkpoint.load(tmp_path / "new")
    for path in tmp_path / "absent", run / "latest":
        with pytest.raises(UserError, match="holds no checkpoint; give a run folder"):
            checkpoint.load(path)


@pytest.mark.parametrize("text", [None, "", "..", "step-00000009\n"])
def test_no_best_is_said(run, text):
    (run / "best").unlink()
    if text is not None:
        (run / "best").write_text(text)
    with pytest.raises(UserError, match="has no best checkpoint"):
        checkpoint.best(run)


@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_a_pointer_stands_for_its_checkpoint(run, pointer):
    assert checkpoint.followed(run / pointer) == run / "checkpoints" / (run / pointer).read_text().strip()
    assert step_of(checkpoint.load(checkpoint.followed(run / pointer))) == {"latest": 3, "best": 2}[pointer]
    (run / pointer).write_text("../elsewhere")
    for path in run, run / "checkpoints/step-00000001", run / "log.jsonl", run / pointer:
        assert checkpoint.followed(path) == path
