"""Run folders that version 0.1.0 wrote still load, resume and write.

tests/golden/runs_0_1_0 holds tiny ones, each stopped before its end, and resumed.json what 0.1.0 itself logged when it
resumed them to step 12.
"""
import json
import shutil
from pathlib import Path

import pytest

from pyllama.cli.main import main

RUNS = Path(__file__).parent / "golden" / "runs_0_1_0"
RESUMED = json.loads((RUNS / "resumed.json").read_text())


@pytest.fixture
def run(request, tmp_path):
    """A copy of a run, to be written to."""
    return Path(shutil.copytree(RUNS / request.param, tmp_path / request.param))


@pytest.mark.parametrize("run", RESUMED, indirect=True)
def test_run_resumes_as_it_would_have_then(run):
    """The instruction set may differ from that of the recording: a dozen steps of rounding stay far below 1e-4, and a
    lost moment, another order of rows or another dropout do not."""
    assert main(["resume", str(run), "--max_steps", "12"]) == 0
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert {name: last[name] for name in RESUMED[run.name]} == pytest.approx(RESUMED[run.name], rel=1e-4)


@pytest.mark.parametrize(("run", "text"), [("llama", "The t t t t t t "), ("gpt2", "The             ")],
                         indirect=["run"])
def test_run_continues_a_text(run, text, capsys):
    assert main(["generate", "--model", str(run), "--prompt", "The ", "--max_new_tokens", "12",
                 "--temperature", "0"]) == 0
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize(("run", "text", "answer"),
                         [("classify", "a fine film", "good"), ("lstm", "a dull film", "good"),
                          ("g2p", "cat", "tttttttt")], indirect=["run"])
def test_run_of_a_task_answers(run, text, answer, capsys):
    flags = ["--max_new_tokens", "8"] if run.name == "g2p" else []
    assert main(["predict", "--model", str(run), "--text", text, *flags]) == 0
    assert capsys.readouterr().out == answer + "\n"
