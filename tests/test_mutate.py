"""The mutation tester itself: it plants the right bugs in the right places, and its verdicts are correct."""
import ast
import importlib
import os
import re
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

import pyllama.ops  # noqa: F401 -- registers
from pyllama import backend, cuda_text
from pyllama.op import OPS
from pyllama.testing.mutation.forks import BROKEN, KILLED, SURVIVED, fork
from pyllama.testing.mutation.mutants import Mutant, mutants_in
from tests import fakecupy
from tests.another import python
from tests.cuda_on_cpu import KernelError
from tests.cuda_on_cpu.build import missing
from tests.fakecupy import rules
from tests.mutate import c_mutants, cuda_bugs, python_mutants
from tests.mutate.c_mutants import squeeze
from tests.mutate.hunt import SUITE
from tests.mutate.judge import judge
from tests.mutate.python_mutants import ROOT
from tests.mutate.scores import percent
from tests.test_cuda_kernels import both_passes


def python_changes(source):
    definition = ast.parse(source).body[0]
    return [mutant.change for mutant in mutants_in(definition, "tiny", "tiny.py")]


@pytest.mark.parametrize(("expression", "others"), {
    "a + b": ["a - b", "a", "b"],
    "a - b": ["a + b", "a", "-b"],
    "a * b": ["a / b", "a", "b"],
    "a / b": ["a * b", "a"],
    "a // b": ["a * b", "a"],
    "a ** -0.5": ["a", "a ** -1.0", "a ** 0.5"],
    "a @ b": [],
    "-a": ["a"],
    "a & b": ["a | b", "a", "b"],
    "a < b": ["a <= b", "a >= b"],
    "a == b": ["a != b"],
    "a is None": ["a is not None"],
    "a or b": ["a", "b"],
    "a if c else b": ["a", "b"],
    "a.T": ["a"],
    "a.swapaxes(c, d)": ["a"],
    "f(a, b)": ["a"],
    "max(a, b)": ["min(a, b)", "a", "b"],
    "np.where(c, a, b)": ["np.where(c, b, a)", "a", "b"],
    "np.sum(a, axis=-1, keepdims=True)": [
        "np.sum(a, keepdims=True)", "a", "np.mean(a, axis=-1, keepdims=True)", "np.sum(a, axis=0, keepdims=True)",
        "np.sum(a, axis=-2, keepdims=True)", "np.sum(a, axis=-1, keepdims=False)"],
    "a[0::2]": ["a[1::2]", "a[-1::2]", "a[0::3]", "a[0::1]"],
    "[a, b, c]": ["[b, a, c]", "[a, c, b]"],
    "((a, b), c)": ["((b, a), c)"],
    "kind == 'ntk'": ["kind != 'ntk'", "kind == 'something else'"],
    "d.get('factor', b)": ["b", "d.get('something else', b)"],
}.items())
def test_every_operator_on_an_expression(expression, others):
    definition = ast.parse(f"def f(x):\n    return {expression}").body[0]
    codes = [mutant.code for mutant in mutants_in(definition, "tiny", "tiny.py")]
    assert sorted(codes) == sorted(f"def f(x):\n    return {other}" for other in others)


@pytest.mark.parametrize(("body", "others"), {
    "y += x": ["pass", "y = x", "y -= x"],
    "np.add.at(y, i, x)": ["pass", "y[i] += x"],
    "check(x)": ["pass"],
    "raise ValueError(x + 1)": ["pass"],
    "x = x.real": ["pass"],
    "a, b = (c, d)": ["a, b = (d, c)"],
    "if x:\n        y()": ["if True:\n        y()", "if False:\n        y()", "if x:\n        pass"],
    "return (a, None)": ["return (None, a)", "return (None, None)", "return (a * 0, None)"],
}.items())
def test_every_operator_on_a_statement(body, others):
    definition = ast.parse(f"def backward(x):\n    {body}").body[0]
    codes = [mutant.code for mutant in mutants_in(definition, "tiny", "tiny.py")]
    assert sorted(codes) == sorted(f"def backward(x):\n    {other}" for other in others)


def test_options_are_ignored_and_defaults_changed_where_they_are_read():
    assert python_changes("def forward(x, *, idle=1, eps=0.5):\n    'text 1'\n    return f(eps)") == [
        "def forward(x, *, idle=1, eps=0.5): → def forward(x, *, idle=1, eps=1.0):", "f(eps) → eps", "eps → always 0.5"]


def test_the_name_of_a_mutant_does_not_depend_on_the_line_and_tells_equals_apart():
    source = "def f(x):\n    y = x * 2\n    return y + x * 2"
    moved = "def f(x):\n\n    # a comment\n    y = (x  *  2)\n\n    return y + x * 2"
    assert python_changes(source) == python_changes(moved)
    assert "x * 2 → x / 2" in python_changes(source)
    assert "x * 2 → x / 2 (2)" in python_changes(source)


def test_every_mutant_of_an_op_compiles_and_differs():
    for op in OPS.values():
        mutants = list(python_mutants.mutants_of(op))
        assert len({(mutant.function, mutant.change) for mutant in mutants}) == len(mutants)
        assert {"forward", "backward"} <= {mutant.function for mutant in mutants}
        for mutant in mutants:
            compile(mutant.code, "mutant", "exec")


def test_a_planted_bug_is_everywhere_the_function_was_imported(monkeypatch):
    module = types.ModuleType("pyllama.ops.tiny")
    module.__file__ = "tiny.py"
    exec("factor = 2\ndef double(x, *, plus=0):\n    return factor * x + plus", vars(module))
    monkeypatch.setitem(sys.modules, "pyllama.ops.tiny", module)
    imported = module.double
    bug = "def double(x, *, plus=1):\n    return factor / x + plus"
    python_mutants.plant(Mutant("tiny", "double", "", "", "", bug))
    assert imported(4) == 1.5


C = """
/* a * b */
#define TWICE(x) \\
    (x + x)
static void f(real *restrict y, const real *x, idx n) {
    %s
}
"""


@pytest.mark.parametrize(("statement", "others"), {
    "return a + b;": ["return a - b;", "return a ;", "return b;"],
    "return a - b;": ["return a + b;", "return a ;", "return - b;"],
    "return a * b[i] + c;": ["return a / b[i] + c;", "return a + c;", "return b[i] + c;", "return a * b[i] - c;",
                             "return a * b[i] ;", "return c;"],
    "return a / f(b);": ["return a * f(b);", "return a ;"],
    "return -x;": ["return x;"],
    "return (real)-x;": ["return (real)x;"],
    "const real *restrict p = x + n;": ["const real *restrict p = x - n;", "const real *restrict p = x ;",
                                        "const real *restrict p = n;"],
    "if (a < b) return;": ["if (a <= b) return;", "if (a >= b) return;"],
    "real s = 0;": ["real s = 1;"],
    "real s[64] = {0};": ["real s[65] = {0};", "real s[63] = {0};", "real s[64] = {1};"],
    "real e = 0x1.8p-1f;": ["real e = (2 * 0x1.8p-1f);"],
    "s += x;": ["s -= x;", "s = x;", ";"],
    "memcpy(y, x, n);": [";"],
    "word w = a << b;": ["word w = a >> b;", "word w = a ;"],
}.items())
def test_every_operator_on_a_statement_of_c(statement, others):
    mutants = list(c_mutants.mutants_in(C % statement, "tiny.c", "csrc/cpu/tiny.c"))
    assert sorted(squeeze(mutant.code) for mutant in mutants) == sorted(squeeze(C % other) for other in others)
    assert {mutant.function for mutant in mutants} <= {"f"}
    assert {mutant.where for mutant in mutants} <= {"csrc/cpu/tiny.c:6"}


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")                 # Python 3.12 on fork
@pytest.mark.parametrize("bug", [False, True])
def test_a_planted_kernel_runs_in_the_fork_alone(tmp_path, bug):
    before = (ROOT / "csrc/cpu/swiglu.c").read_text()
    mutant = Mutant("swiglu.c", "swiglu", "", "", "", before.replace("* u;", "/ u;", 1)) if bug else None
    inputs = [np.array([1.0]), np.array([2.0])]
    right, wrong = OPS["swiglu"].forward(*inputs)[0], OPS["swiglu"].forward(inputs[0], 1 / inputs[1])[0]

    def in_the_fork():
        if not c_mutants.plant(mutant, tmp_path / "build"):
            return BROKEN
        return int(not np.allclose(backend.cpu.swiglu(*inputs)[0], wrong if bug else right))

    _, status = os.waitpid(fork(in_the_fork), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_allclose(backend.cpu.swiglu(*inputs)[0], right)
    assert (ROOT / "csrc/cpu/swiglu.c").read_text() == before


def test_a_kernel_that_does_not_compile_is_not_a_mutant(tmp_path):
    assert not c_mutants.plant(Mutant("swiglu.c", "swiglu", "", "", "", "syntax error"), tmp_path / "build")


def of(n, function="forward", unit="relu"):
    return [Mutant(unit, function, "relu.py:1", f"line {i}", f"{i} → {i + 1}", "") for i in range(n)]


def test_the_verdict(capsys):
    killed, survivor = dict.fromkeys(of(19), False), of(1, "backward")[0]
    reason = {"relu": {"backward": {"0 → 1": "because"}}}
    assert judge(killed, {}, 95)
    assert not judge(killed | {survivor: True}, {}, 95)
    assert "survived    relu.py:1 backward:  0 → 1" in capsys.readouterr().out
    assert judge(killed | {survivor: True}, reason, 95)
    assert judge(killed | {survivor: True}, {"relu": {"backward": {"line 0": "because"}}}, 95)
    assert not judge(killed | {survivor: True}, {"relu": {"backward": {"0 → 1": ""}}}, 95)
    assert not judge(killed | {survivor: False}, reason, 95)
    assert "not needed  relu backward:  0 → 1" in capsys.readouterr().out
    assert judge(killed, {"gelu": {"backward": {"0 → 1": "of an op that was not asked for"}}}, 95)
    assert not judge(killed, {"gone": {"backward": {"0 → 1": "of an op that is no more"}}}, 95)


def test_reasons_have_their_limits():
    verdicts = dict.fromkeys(of(18), False) | dict.fromkeys(of(2, "other"), True)
    reasons = {"relu": {"other": {"0 → 1": "because", "line 1": "because"}}}
    assert judge(verdicts, reasons, 90)
    assert not judge(verdicts, reasons, 95)


def test_the_score_leaves_out_accepted_survivors():
    assert percent(every=10, killed=8, known=1) == pytest.approx(800 / 9)
    assert percent(every=1, killed=0, known=1) == 100


HUNT = """
import inspect
from pyllama.ops import relu
from tests.mutate.hunt import Hunt
from pyllama.testing.mutation.mutants import Mutant
right = inspect.getsource(relu.backward)
codes = {"no bug": right, "bug": right.replace(">", "<"), "crash": "def backward(dy, x):\\n    import os; os.abort()"}
mutants = [Mutant("relu", "backward", "", "", name, code) for name, code in codes.items()]
Hunt.profile, Hunt.suite = "few", ["test_ops.py"]       # examples, files: the verdicts are what is tested here
hunt = Hunt(mutants, 2, lambda mutant, status: print(mutant.change, status))
print("ended with", int(hunt.run()))
"""


def test_a_hunt_kills_what_a_test_notices_and_nothing_else():
    assert all([*(ROOT / "tests").glob(pattern)] for pattern in SUITE)
    run = subprocess.run([sys.executable, "-B", "-c", HUNT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(run.stdout.splitlines()) == ["bug 1", "crash -6", "ended with 0", "no bug 0"]


# --- CUDA kernels -----------------------------------------------------------------------------------------------------

def test_every_bug_of_the_list_can_be_planted():
    """A kernel that is changed may take its bugs along."""
    planned = list(cuda_bugs.bugs())
    assert all(bug.code != (cuda_text.FOLDER / bug.unit).read_text() for bug in planned)
    assert {bug.unit for bug in planned} == {path.name for path in cuda_text.FOLDER.glob("*.cu*")}


@pytest.mark.skipif(bool(missing), reason=f"the executor needs {missing}")
@pytest.mark.parametrize(("file", "what", "name", "found"), [
    ("real.cuh", "block_sum writes while the sum before is being read", "layer_norm", "racecheck"),
    ("rms_norm.cu", "blocks add to one row of dw", "rms_norm", "racecheck"),
    ("real.cuh", "store has lost its bounds check", "gelu", "memcheck"),
    ("attention.cu", "too little shared memory for weights", "attention", "memcheck"),
    ("real.cuh", "block_sum reads one warp more than there are", "rms_norm", "initcheck"),
    ("real.cuh", "block_sum shuffles among the lanes that have a sum", "rms_norm", "synccheck"),
    ("layer_norm.cu", "threads without a number leave a barrier out", "layer_norm", "synccheck"),
])
def test_what_the_executor_checks_is_found_in_a_kernel(monkeypatch, tmp_path, file, what, name, found):
    bug = next(bug for bug in cuda_bugs.bugs() if (bug.unit, bug.change) == (file, what))
    monkeypatch.setattr(cuda_text, "FOLDER", cuda_bugs.planted(bug, tmp_path / "cuda"))
    monkeypatch.setattr(fakecupy, "checked", True)
    with fakecupy.installed() as cupy:
        cuda, launching = map(importlib.import_module, ("pyllama.cuda", "pyllama.cuda.launching"))
        for kept in ("module", "kernel"):
            monkeypatch.setattr(launching, kept, getattr(launching, kept).__wrapped__)      # as if nothing had run yet
        with pytest.raises(KernelError, match=f"^{found}"):
            both_passes(cuda, lambda *xs: [*map(cupy.asarray, xs)], name, 0,
                        **{"...": (3,)}, D=701, F=701, B=1, R=3, T=5, S=40, K=20)


@pytest.mark.skipif(bool(missing), reason=f"the executor needs {missing}")
def test_bugs_planted_in_the_kernels_with_quick_tests_are_found():
    """The whole list takes minutes: python -m tests.mutate --cuda."""
    rules.real()
    done = python("-m", "tests.mutate", "--cuda", "adamw", "cross_entropy", "embedding", "gelu", "relu", "rope", "sgd",
                  "softmax", "swiglu", timeout=900)
    found, planted = map(int, re.search(r"(\d+) of (\d+) bugs found", done.stdout).groups())
    assert (done.returncode, found) == (0, planted), done.stdout + done.stderr
    assert planted >= 40


class SmallHunt(cuda_bugs.CudaHunt):
    """One of its tests fails without a bug, too, and one ends the process."""
    def verdict(self, bug):
        self.planted_bug = bug
        return KILLED if next(self.failures(self.tests), None) else SURVIVED

    def failures(self, tests):
        for test in tests:
            self.pytest_runtest_logstart(test.nodeid)
            if test.name == "crash" and self.planted_bug and self.planted_bug.change == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if test.name == "always" or (self.planted_bug and test.name == self.planted_bug.change):
                yield test


def test_bugs_that_a_false_alarm_found_are_tried_again():
    bugs = [Mutant("relu.cu", "relu", "", "", what, "") for what in ("seen", "unseen", "crash")]
    found = {}
    hunt = SmallHunt(bugs, 2, lambda bug, status: found.update({bug.change: hunt.found_by(bug, status)}))
    hunt.tests = [types.SimpleNamespace(nodeid=f"file::{name}[0]", name=name) for name in ("always", "seen", "crash")]
    hunt.loop()
    assert hunt.left_out == {"file::always[0]"}
    assert found == {"seen": ("crash", "seen"), "unseen": ("not found", ""), "crash": ("crash", "crash")}


@pytest.mark.parametrize(("said", "net"), {
    "racecheck: read at byte 0": "checked build: race",
    "initcheck: read before any write": "checked build: uninitialized",
    "k.cu:1:1: error: expected ;": "does not compile",
    "overflow of an integer sum": "checked build: arithmetic",
}.items())
def test_the_net_that_a_bug_was_caught_in(said, net):
    assert cuda_bugs.net_of(f"def test_the_order_of_threads():\n    f()\nE   tests.KernelError: {said}") == net


def test_a_bug_that_is_not_found_or_does_not_compile_is_reported(capsys):
    caught, missed, broken = (Mutant("relu.cu", "relu", "relu.cu:1", "", what, "") for what in ("one", "two", "three"))
    assert cuda_bugs.judge({caught: ("comparison", "test_relu")})
    assert not cuda_bugs.judge({caught: ("comparison", "test_relu"), missed: ("not found", "")})
    assert not cuda_bugs.judge({broken: ("does not compile", "test_relu")})
    said = capsys.readouterr().out
    assert "1 of 1 bugs found" in said
    assert "1 of 2 bugs found" in said
