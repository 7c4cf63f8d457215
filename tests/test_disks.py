"""Whatever the disk refuses, a command that trains says so in a sentence, and the next one completes the run.

The refusals are errors of fsync, which every file of a run passes, and a limit of the size of files, at which a write
itself fails.
"""
import errno
import itertools
import os
import resource
from unittest import mock

import pytest

from pyllama.cli.main import main
from tests.checkpoints import outcome, scratch

TEXT = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2", "--block_size", "8"]
RUN = ["--shards", "1", "--max_steps", "2", "--eval_steps", "1", "--save_steps", "1", "--save_total_limit", "1"]


@pytest.fixture
def tmp_path():
    """A folder in memory, because these tests force thousands of files to the disk."""
    with scratch() as folder:
        yield folder


@pytest.fixture(params=["text", "rows"])
def command(request, tmp_path):
    """A command that trains, without its folder."""
    if request.param == "text":
        (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
        return ["train", "--data", str(tmp_path / "text.txt"), *TEXT, *RUN]
    (tmp_path / "rows.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 30)
    return ["finetune", "--task", "classify", "--data", str(tmp_path / "rows.csv"), "--model", "lstm", "--vocab_size",
            "300", "--batch_size", "4", *RUN]


@pytest.fixture
def undisturbed(command, tmp_path):
    assert main([*command, "--out_dir", str(tmp_path / "undisturbed")]) == 0
    return outcome(tmp_path / "undisturbed")


def tried_until_done(command, run, refusing, capsys):
    """Try a command with ever fewer refusals, each time in another folder, until it succeeds.

    refusing    refusing(attempt) is the context of a disk that refuses

    Yields (folder, sentence) of each attempt that failed, when the run has been ended without refusals.
    """
    for attempt in range(100):
        folder = run / str(attempt)
        with refusing(attempt):
            code = main([*command, "--out_dir", str(folder)])
        if code == 0:
            return
        sentence = capsys.readouterr().err
        assert code == 2, sentence
        assert sentence.count("\n") == 1
        assert not (folder / "lock").exists()
        again = ["resume", str(folder)] if (folder / "latest").exists() else [*command, "--out_dir", str(folder)]
        assert main(again) == 0, capsys.readouterr().err
        yield folder, sentence


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_moment_is_a_sentence_and_costs_nothing(command, undisturbed, tmp_path, number, capsys):
    fsync, count = os.fsync, 0

    def refusing(attempt):
        calls = itertools.count()

        def failing(handle):
            if next(calls) >= 5 * attempt:
                raise OSError(number, os.strerror(number))
            fsync(handle)

        return mock.patch.object(os, "fsync", failing)

    for folder, sentence in tried_until_done(command, tmp_path / "runs", refusing, capsys):
        assert os.strerror(number) in sentence
        assert ("free some space" in sentence) == (number == errno.ENOSPC)
        assert outcome(folder) == undisturbed
        count += 1
    assert count > 4


def test_a_limit_of_the_size_of_files_is_named_and_costs_nothing(command, undisturbed, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    count = 0

    class Limit:
        def __init__(self, attempt):
            self.size = 30 * 3 ** attempt                   # bytes

        def __enter__(self):
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))

        def __exit__(self, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    for folder, sentence in tried_until_done(command, tmp_path / "runs", Limit, capsys):
        assert "File too large; raise the file-size limit" in sentence
        assert outcome(folder) == undisturbed
        count += 1
    assert count > 2
