"""pyllama score: which bugs a test notices, how often it fails without one, and what it says where there is nothing."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pyllama import testing
from pyllama.cli.score import score, summary, verdict
from pyllama.errors import UserError
from pyllama.testing.mutation.checker import score_checker
from pyllama.testing.mutation.forks import pool
from pyllama.testing.mutation.score import score_test
from pyllama.testing.mutation.suite import seed_all, seeds_kept
from pyllama.testing.mutation.trial import Finding, Outcome, Trial, ended
from pyllama.testing.mutation.watching import random_numbers_kept
from tests.another import ROOT

MINE = '''
import numpy as np

def forward(x, w):
    return w * x, (x, w)

def backward(dy, x, w):
    """dx, dw"""
    return w * dy, np.sum(dy * x, axis=0)
'''
TESTS = '''
import os, random, time
import numpy as np, pytest
from hypothesis import given, strategies as st
from mine import backward, forward
from pyllama.ops import softmax, tanh
from pyllama.testing import check

NOISE = np.random.default_rng(int(os.environ["PYLLAMA_SEED"]))          # the variable is there at the import, too
calls = 0

def slope(f, x, h=1e-6):
    moved = [f(x + s * h * np.eye(x.size)[i].reshape(x.shape)) for i in range(x.size) for s in (1, -1)]
    return np.array([(a - b).sum() / (2 * h) for a, b in zip(moved[::2], moved[1::2])]).reshape(x.shape)

def test_blind():
    softmax(np.ones((2, 3)))

def test_weak():                        # dy = ones: the gradient of softmax is 0, whatever is wrong with its factors
    x = np.random.standard_normal((2, 3))
    y, back = softmax(x)
    assert np.allclose(back(np.ones((2, 3)))[0], slope(lambda x: softmax(x)[0], x), atol=1e-6)

def test_strong():
    assert check(softmax, seed=np.random.randint(2 ** 31), problems=20)

def test_ones():                        # w = ones, and only dx
    x, w = np.random.standard_normal((4, 3)), np.ones(3)
    dx, dw = backward(np.ones((4, 3)), x, w)
    assert np.allclose(dx, slope(lambda x: forward(x, w)[0], x))

def test_unlucky():
    assert np.random.default_rng().random() > 0.2, "bad luck"
    assert np.random.random() > 0.2 and random.random() > 0.2 and int(os.environ["PYLLAMA_SEED"]) != 7
    tanh(np.random.random(3))

@given(st.integers(0, 10**6))
def test_drawn(n):
    tanh(np.array([float(n)]))
    assert n % 311 != 200

def test_second_time():
    global calls
    calls += 1
    tanh(np.ones(3))
    assert calls > 1

def test_wrong():
    assert False, "always"

@pytest.mark.skip(reason="not today")
def test_skipped():
    tanh(np.ones(1))

def test_crash():
    os.abort()

def test_slow():
    open("started", "a").close()
    softmax(np.ones((2, 3)))
    time.sleep(20)
    open("ended", "a").close()
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine.py").write_text(MINE)
    (folder / "test_mine.py").write_text(TESTS)
    (folder / "test_broken.py").write_text("import no_such_module\ndef test_x(): pass\n")
    (folder / "test_stopped.py").write_text("raise KeyboardInterrupt\n")
    (folder / "test_none.py").write_text("x = 1\n")
    (folder / "closure.py").write_text("def f(x):\n    def back(dy):\n        return x * dy\n    return x, back\n")
    (folder / "unused.py").write_text("def f(): pass\n")
    (folder / "other").mkdir()
    (folder / "other/conftest.py").write_text("import no_such_module\n")
    (folder / "other/test_x.py").write_text("def test_x(): pass\n")
    return folder


def command(*words):
    return [sys.executable, "-m", "pyllama", "score", *words]


SERVER = """
import contextlib, io, os, sys
import pyllama.testing.plugin, pyllama.testing.strategies
from pyllama.cli.main import main
with contextlib.redirect_stderr(io.StringIO()):
    main(["score", "test_none.py", "--op", "tanh"])                     # refused, but pytest has loaded its plugins
for line in sys.stdin:
    if not (child := os.fork()):
        for number, (name, how) in enumerate([(os.devnull, os.O_RDONLY), ("out", os.O_WRONLY), ("error", os.O_WRONLY)]):
            os.dup2(os.open(name, how | os.O_CREAT | os.O_TRUNC), number)
        code = main(["score", *line.split()])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server(folder):
    """A process that forks for each command, because a start of Python, pytest and its plugins takes two seconds."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, env={**variables, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def run(folder, server):
    """run(*words): (exit code, standard output, standard error) of pyllama score in the folder."""
    def answer(*words):
        print(*words, file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return code, (folder / "out").read_text(), (folder / "error").read_text()

    return answer


@pytest.fixture(scope="module")
def found(folder, run):
    """found(*words): (exit code, what --json has)"""
    def answer(*words):
        code, out, error = run(*words, "--json", "found.json")
        assert code in (0, 1), out + error
        return code, json.loads((folder / "found.json").read_text())

    return answer


def test_a_strong_test_kills_what_a_weak_one_misses(found):
    code, strong = found("test_mine.py::test_strong", "--op", "softmax", "--seeds", "5")
    assert (code, strong["killed"], strong["alarms"]) == (0, strong["total"], {})
    code, weak = found("test_mine.py::test_weak", "--op", "softmax", "--seeds", "5")
    survived = {finding["name"] for finding in weak["findings"] if finding["verdict"] == "survived"}
    assert code == 1
    assert {"zero", "negated"} <= survived              # of a gradient that is zero
    assert weak["killed"] == weak["total"] - len(survived) > 0
    assert weak["seeds"] == 5


def test_the_seeds_that_alarm_are_the_same_in_every_run(found):
    words = "test_mine.py::test_unlucky", "test_mine.py::test_drawn", "--op", "tanh", "--seeds", "30"     # two batches
    _, two = found(*words, "--jobs", "2")
    _, three = found(*words, "--jobs", "3")
    assert two["alarms"] == three["alarms"]
    assert {"7"} < two["alarms"].keys() < {str(seed) for seed in range(30)}
    assert two["seeds"] == 30
    assert "bad luck" in "".join(two["alarms"].values())


def test_a_test_that_ignores_its_seed_or_never_runs_the_op_is_recognized(run):
    code, out, _ = run("test_mine.py::test_blind", "--op", "softmax")
    assert code == 1
    assert "killed 0 of" in out
    assert "false alarms: 0 of 20 seeds" in out
    assert "every seed gave softmax the same inputs" in out
    code, out, _ = run("test_mine.py::test_blind", "--op", "tanh", "--seeds", "1")
    assert "test_mine.py::test_blind did not call tanh" in out


@pytest.mark.parametrize("target", ["mine:backward", "mine.py:backward"])
def test_the_mutants_of_a_function_and_those_that_change_no_result(found, target):
    code, scored = found("test_mine.py::test_ones", "--target", target, "--seeds", "3")
    verdicts = {finding["cause"]: (finding["verdict"], finding["alike"]) for finding in scored["findings"]}
    assert code == 1
    assert verdicts["w * dy → dy"] == ("survived", True)                    # w = ones
    assert verdicts["np.sum(dy * x, axis=0) → np.sum(dy * x)"] == ("survived", False)
    assert verdicts["dy * x → dy / x"] == ("survived", False)               # another dw, which the test never reads
    assert verdicts["return (w * dy, np.sum(dy * x, axis=0)) → return (w * dy * 0, np.sum(dy * x, axis=0))"] == (
        "killed", False)
    assert (scored["seeds"], scored["alarms"]) == (3, {})


REFUSALS = {
    "test_mine.py::test_stron --op softmax":
        "there is no test test_stron in test_mine.py; did you mean test_strong?",
    "test_mine.py::test_wrong --op tanh":
        "test_mine.py::test_wrong fails without a bug: AssertionError: always",
    "test_mine.py::test_second_time --op tanh":
        "test_mine.py::test_second_time fails without a bug: assert 1 > 1",
    "test_mine.py::test_skipped --op tanh":
        "test_mine.py::test_skipped is skipped: not today",
    "test_mine.py::test_crash --op tanh":
        "test_mine.py::test_crash: the process ended with SIGABRT without a bug",
    "test_broken.py --op tanh":
        "test_broken.py cannot be collected: ModuleNotFoundError: No module named 'no_such",
    "test_none.py --op tanh":
        "test_none.py has no test",
    "other/test_x.py --op tanh":
        "other/test_x.py cannot be collected: ImportError while loading conftest",
    "test_mine.py::test_ones --target mine:bakward":
        "mine has no 'bakward'; did you mean backward?",
    "test_mine.py::test_ones --target closure:f.back":
        "back is made inside f at each call; name closure:f, whose bugs are also in back",
    "test_mine.py::test_ones --target closure:f.<locals>.back":
        "back is made inside f at each call; name closure:f, whose bugs are also in back",
    "test_mine.py::test_ones --target math:sin":
        "no bug can be planted in math:sin: it is compiled",
    "test_mine.py::test_ones --target unused.py:f":
        "the tests do not import unused.py",
    "test_mine.py::test_ones --target nowhere:f":
        "there is no module 'nowhere'",
    "test_mine.py::test_ones --target backward":
        "'backward' does not name a function",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_what_cannot_be_scored_says_why(run, words):
    code, _, error = run(*words.split())
    assert (code, error.count("\n")) == (2, 1), error
    assert error.startswith(f"pyllama: {REFUSALS[words]}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_it_is_stopped_it_shows_what_is_known_and_leaves_no_process(folder, number):
    (folder / "started").unlink(missing_ok=True)
    running = subprocess.Popen(command("test_mine.py::test_slow", "--op", "softmax", "--jobs", "1"), cwd=folder,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not (folder / "started").exists() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(number)
    out, error = running.communicate(timeout=60)            # the pipes are open as long as a process is left
    assert (running.returncode, error) == (128 + number, "")
    assert "stopped" in out
    assert not (folder / "ended").exists()


def test_ctrl_c_while_the_tests_are_collected(run):
    assert run("test_stopped.py", "--op", "tanh") == (130, "", "pyllama: stopped at once\n")


def test_ctrl_c_just_after_the_end_of_a_fork(monkeypatch, tmp_path):
    def wait(wait=os.wait):
        wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        next(pool([("", lambda: 0)], 1, tmp_path))


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"tests": ("no_file.py",), "op": "tanh"}, "the file no_file.py does not exist"),
    ({"tests": (__file__,), "op": "tahn"}, "there is no op 'tahn'; did you mean tanh?"),
    ({"tests": (__file__,)}, "score needs either --op NAME or --target"),
    ({"tests": (__file__,), "op": "tanh", "target": "mine:f"}, "score needs either --op NAME or --target"),
    ({"tests": (__file__,), "op": "tanh", "jobs": 0}, "at least 1 job"),
    ({"tests": (__file__,), "op": "tanh", "json": Path(__file__)}, "--json would overwrite the Python file"),
    ({}, "score needs a test"),
    ({"tests": (__file__,), "checker": True}, "--checker scores pyllama's own checker"),
])
def test_flags_that_do_not_fit_are_refused(arguments, sentence):
    tests = arguments.pop("tests", ())
    with pytest.raises(UserError, match=sentence):
        score(tests, **arguments)


def test_an_op_without_bugs_and_a_missing_pytest_are_named(monkeypatch):
    monkeypatch.setattr("pyllama.testing.catalogue.FOLDER", ROOT / "docs")
    with pytest.raises(UserError, match=r"the catalogue has no op 'tanh'.*as the target, module:function"):
        score_test([__file__], op="tanh")
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(UserError, match="pyllama score needs pytest, which is not installed: pip install"):
        score_test([__file__], op="tanh")


def test_everything_random_is_seeded(monkeypatch):
    monkeypatch.setattr(np.random.bit_generator, "randbits", np.random.bit_generator.randbits)
    monkeypatch.setenv("PYLLAMA_SEED", "")
    option = SimpleNamespace(gradcheck_seed=None)
    items = [SimpleNamespace(config=SimpleNamespace(option=option))]

    def numbers(seed):
        with random_numbers_kept():
            seed_all(seed, items)
            return (random.random(), np.random.random(), np.random.default_rng().random(),     # noqa: NPY002
                    np.random.default_rng().random(), option.gradcheck_seed, os.environ["PYLLAMA_SEED"])

    assert numbers(3) == numbers(3)
    assert all(a != b for a, b in zip(numbers(3), numbers(4), strict=True))
    assert len({*numbers(3)}) == 6                      # also the two generators without a seed differ


def test_the_seeds_of_a_collection_do_not_outlive_it(monkeypatch):
    monkeypatch.setenv("PYLLAMA_SEED", "mine")
    before = np.random.bit_generator.randbits
    with seeds_kept():
        seed_all(3, [])
    assert (os.environ["PYLLAMA_SEED"], np.random.bit_generator.randbits) == ("mine", before)


# --- pyllama's own checker ---

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")         # Python 3.12 on fork


def test_the_checker_kills_the_bugs_of_an_op_and_has_no_false_alarm():
    outcome = score_checker("tanh", seeds=3)
    assert (outcome.killed, outcome.total, outcome.seeds) == (outcome.bugs, outcome.bugs, 3)
    assert outcome.perfect
    assert all(finding.by for finding in outcome.findings)


@pytest.mark.parametrize("passes", [True, False])
def test_a_checker_that_always_says_the_same_is_not_perfect(monkeypatch, passes):
    class Report(SimpleNamespace):
        def __bool__(self):
            return passes

    monkeypatch.setitem(vars(testing), "check", lambda op, seed, problems: Report(pairs=(), faults=()))
    outcome = score_checker("tanh", seeds=3)
    assert outcome.killed == (0 if passes else outcome.total)
    commands = {f"pyllama check tanh --seed {seed} --problems 10" for seed in range(3)}
    assert outcome.alarms.keys() == (set() if passes else commands)
    assert not outcome.perfect


def test_an_error_of_our_own_is_not_taken_for_a_result():
    trial = Trial(lambda: [1 / 0], None, 1, 1, lambda *_: None)
    trial.loop()
    assert isinstance(trial.error, ZeroDivisionError)


# --- in words ---

def test_a_score_in_words():
    findings = [Finding("a", "", "killed", "test_x: AssertionError"), Finding("b", "", "equivalent"),
                Finding("c", "", "survived", calls=3, alike=True), Finding("d", "", "survived", calls=3),
                Finding("e", "", "survived")]
    assert [*map(verdict, findings)] == [
        "killed", "no bug: the same bytecode", "survived, gave the same results on all 3 calls",
        "survived, though results differed", "survived"]
    alarms = {str(seed): "because" for seed in range(12)}
    lines = summary(Outcome(bugs=7, findings=findings, seeds=1000, alarms=alarms, stopped=True), "seeds")
    assert lines[0].startswith("killed 1 of 6 bugs; 1 of the survivors gave the same results on every call")
    assert lines[1:3] == ["false alarms: 12 of 1,000 seeds without a bug", "    0: because"]
    assert lines[-2:] == ["    and 2 more; --json FILE names all", "stopped: 2 bugs not tried"]
    assert not Outcome(bugs=1, findings=findings[:1], alarms={"3": "because"}).perfect
    assert Outcome(bugs=2, findings=findings[:2]).perfect


def test_the_end_of_a_process_in_words():
    assert ended(-signal.SIGALRM, 10) == "a test took more than 10 s"
    assert ended(-signal.SIGSEGV) == "the process ended with SIGSEGV"
    assert ended(5) == "the process ended with exit code 5"
