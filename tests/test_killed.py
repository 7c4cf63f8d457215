"""A training run that is killed and resumed many times ends exactly like an undisturbed one."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyllama.training import checkpoint
from pyllama.training.log import read_log
from tests.training_and_dying import FLAGS

KILLS = 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_that_is_killed_fifty_times_is_the_run_left_alone(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 20)

    def python(*argv):
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", PYLLAMA_NUM_THREADS="1")
        done = subprocess.run([sys.executable, "-m", *map(str, argv)], cwd=Path(__file__).parents[1], env=environment,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    end, refusals = map(int, python("tests.training_and_dying", tmp_path / "killed", text, KILLS, 0).split())
    assert refusals > 0
    python("pyllama", "train", "--data", text, "--out_dir", tmp_path / "whole", *FLAGS, "--max_iters", end)
    killed, whole = checkpoint.load(tmp_path / "killed"), checkpoint.load(tmp_path / "whole")
    assert not killed.notes
    assert killed.step == whole.step == end
    for name, a in (whole.tensors | whole.optimizer).items():
        np.testing.assert_array_equal((killed.tensors | killed.optimizer)[name], a, err_msg=name)
    logs = [[(line["step"], line["loss"]) for line in read_log(tmp_path / run)] for run in ("killed", "whole")]
    assert logs[0] == logs[1]
    assert killed.trainer["standing"] == whole.trainer["standing"]
    best = [checkpoint.load(checkpoint.best(tmp_path / run)) for run in ("killed", "whole")]
    assert best[0].step == best[1].step == whole.trainer["standing"]["best_step"]
    for name, a in best[1].tensors.items():
        np.testing.assert_array_equal(best[0].tensors[name], a, err_msg=name)
    left = [path.name for path in (tmp_path / "killed").rglob("*") if path.name.endswith(".tmp") or path.name == "lock"]
    assert left == []
