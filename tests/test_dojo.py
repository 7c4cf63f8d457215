"""The dojo: each bug is a file to repair; the checker judges it; progress is kept."""
import json
import sys
import textwrap
from pathlib import Path

import pytest

from pyllama.cli import main
from pyllama.errors import UserError
from pyllama.op import OPS
from pyllama.testing import dojo
from pyllama.testing.dojo import registering_nothing

EXERCISES = dojo.exercises()
IN_FORWARD = next((exercise for exercise in EXERCISES if exercise.bug.function == "forward"), None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "dojo"


def run(capsys, *words):
    """(exit code, output, error)"""
    code = main(["dojo", *words])
    return code, *capsys.readouterr()


def repair(path, exercise):
    path.write_text(path.read_text().replace(exercise.bug.after, exercise.bug.before))


def test_every_file_is_the_module_with_its_bug_in_place():
    """And with nothing else changed."""
    for exercise in EXERCISES:
        bug, text = exercise.bug, Path(dojo.module_of(exercise.bug.op).__file__).read_text()
        start = text.index(f"def {bug.function}(")
        assert exercise.code == text[:start] + text[start:].replace(bug.before, bug.after, 1) != text


def test_a_bug_is_found_repaired_and_the_next_one_opened(folder, capsys):
    first, second = EXERCISES[:2]
    path = folder / first.file
    assert run(capsys)[0] == 0
    assert path.read_text() == first.text
    code, out, _ = run(capsys)
    assert code == 1
    assert "wrong" in out
    assert first.bug.cause not in out
    repair(path, first)
    code, out, _ = run(capsys)
    assert code == 0
    assert f"{first.name} is solved, with 2 attempts and 0 hints" in out
    assert first.bug.cause in out
    assert run(capsys)[0] == 0
    assert (folder / second.file).exists()
    assert f"1 of {len(EXERCISES)} solved" in run(capsys, "--list")[1]


def test_hints_come_one_at_a_time(folder, capsys):
    exercise = EXERCISES[0]
    run(capsys)
    for count in (1, 2, 3, 3):
        out = run(capsys, "--hint")[1]
        assert [hint in out for hint in exercise.hints] == [i < count for i in range(3)]
    assert json.loads((folder / "progress.json").read_text())["exercises"][str(exercise.bug)]["hints"] == 3


def test_a_hint_comes_with_the_file_that_is_written(folder, capsys):
    for words in (["--hint"], ["--hint", "--restart"]):
        out = run(capsys, *words)[1]
        assert f"{EXERCISES[0].file} has one bug" in out
        assert EXERCISES[0].hints[0] in out


def test_the_commands_it_names_open_the_same_folder(folder, capsys):
    first = EXERCISES[0]
    out = run(capsys, "--folder", "my own")[1]
    assert "run pyllama dojo --folder 'my own' again" in out
    assert "pyllama dojo --hint --folder 'my own'" in out
    out = run(capsys, "--folder", "my own")[1]
    assert "Again: pyllama dojo --folder 'my own'\n" in out
    repair(folder.parent / "my own" / first.file, first)
    assert f"Next: {EXERCISES[1].name}, with pyllama dojo --folder 'my own'\n" in run(capsys, "--folder", "my own")[1]


def test_the_case_it_prints_runs_where_the_command_ran(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    run(capsys, "rms_norm.1")
    out = run(capsys)[1]
    assert "Again: pyllama dojo\n" in out
    monkeypatch.delitem(sys.modules, "rms_norm_1", raising=False)
    case = textwrap.dedent(out.partition("The smallest failing case:\n\n")[2].partition("\n\nSeed")[0])
    with registering_nothing(), pytest.raises(AssertionError, match="wrong"):
        exec(case, {})
    monkeypatch.delitem(sys.modules, "rms_norm_1", raising=False)


def test_a_list_of_one_exercise_is_refused(folder, capsys):
    assert run(capsys, "--list", "--hint")[0] == 2


def test_restart_keeps_the_attempt_beside_the_new_file(folder, capsys):
    path = folder / EXERCISES[0].file
    run(capsys)
    path.write_text("mine")
    assert run(capsys, "--restart")[0] == 0
    assert path.read_text() == EXERCISES[0].text
    assert path.with_suffix(".py.bak").read_text() == "mine"


def test_a_forward_pass_that_computes_something_else_is_not_a_solution():
    """y = 0 with dx = 0 would be a right gradient."""
    exercise = dojo.find("tanh.1")
    report = exercise.judge(lambda dy, x: (0 * dy,), lambda x: (0 * x, (x,)))
    assert not report
    assert report.faults[0].kind == "another forward"


@pytest.mark.skipif(IN_FORWARD is None, reason="the catalogue has no bug in a forward pass")
def test_a_bug_in_forward_is_repaired_there():
    right = OPS[IN_FORWARD.bug.op]
    assert not IN_FORWARD.judge(IN_FORWARD.given["backward"])
    assert IN_FORWARD.judge(right.backward, right.forward)


def test_an_attempt_leaves_no_op_behind(folder, capsys):
    before = set(OPS)
    run(capsys)
    run(capsys)
    exercise = dojo.find("tanh.1")
    exercise.judge(exercise.given["backward"])
    assert set(OPS) == before


@pytest.mark.parametrize(("text", "message"), [
    ("def backward(", r"cannot be imported: .* \(line 1 of"),
    ("def backward(dy, y):\n    return (dy,)\n", "has no function forward; write it again"),
    ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
])
def test_a_file_that_cannot_be_judged_is_refused_in_one_sentence(folder, capsys, text, message):
    run(capsys)
    (folder / EXERCISES[0].file).write_text(text)
    code, _, err = run(capsys)
    assert code == 2
    assert "Traceback" not in err
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(" ".join(err.split()))


def test_an_attempt_that_raises_is_not_a_solution(folder, capsys):
    run(capsys)
    path = folder / EXERCISES[0].file
    path.write_text(path.read_text().replace("def backward(", "def backward(*_):\n    1 / 0\n\n\ndef before("))
    code, out, _ = run(capsys)
    assert code == 1
    assert "raises ZeroDivisionError: division by zero (line" in out


def test_an_attempt_that_ends_python_is_refused_in_one_sentence(folder, capsys):
    run(capsys, "tanh.1")
    path = folder / "tanh_1.py"
    ends = "def backward(*_):\n    raise SystemExit\n\n\ndef before("
    path.write_text(path.read_text().replace("def backward(", ends))
    code, out, err = run(capsys, "tanh.1")
    assert (code, out) == (2, "")
    assert err.startswith("pyllama: tanh_1.py ended Python: SystemExit (line ")


@pytest.mark.parametrize(("name", "message"), [
    ("tanh.99", "tanh has the exercises tanh.1 to tanh."), ("rmsnorm.1", "did you mean rms_norm?"),
    ("zzz", "pyllama dojo --list names all")])
def test_an_exercise_that_does_not_exist_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        dojo.find(name)


def test_a_damaged_progress_is_refused_and_kept(folder, capsys):
    run(capsys)
    (folder / "progress.json").write_text("{")
    code, _, err = run(capsys)
    assert code == 2
    assert "is damaged; delete it to begin again" in " ".join(err.split())
    assert (folder / "progress.json").read_text() == "{"
