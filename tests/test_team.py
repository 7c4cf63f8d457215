"""The threads of csrc/cpu/team.c run every item of a job once, phase after phase, and race nowhere."""
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler named cc on this machine")


def built(folder, *flags):
    """The program tests/team/phases.c; None if the compiler does not have the flags."""
    program = folder / "phases"
    command = ["cc", "-O1", "-g", "-std=gnu11", "-pthread", *flags, f"-I{ROOT / 'csrc'}", "-o", program,
               ROOT / "tests/team/phases.c"]
    return program if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


def test_an_item_runs_once_and_after_the_phase_before(tmp_path):
    result = subprocess.run([built(tmp_path), "3000"], capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stdout) == (0, "")


def test_no_data_is_raced_for(tmp_path):
    """By ThreadSanitizer, which needs the addresses where it expects them."""
    program = built(tmp_path, "-fsanitize=thread")
    if not program or not shutil.which("setarch"):
        pytest.skip("no ThreadSanitizer")
    result = subprocess.run(["setarch", "-R", program, "300"], capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
