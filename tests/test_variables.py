"""The environment variables of the compiled module: what a wrong one, and one without kernels, does."""
import shlex

import pytest

from pyllama import backend
from tests.another import python

built = pytest.mark.skipif(backend.cpu is None, reason=backend.why_no_cpu)

REPORT = "from pyllama import backend; print(backend.available(), backend.why_no_cpu)"


@built
@pytest.mark.parametrize(("variable", "value"), [
    ("PYLLAMA_ISA", "avx1024"),
    ("PYLLAMA_NUM_THREADS", "many"), ("PYLLAMA_NUM_THREADS", "0"),
    ("PYLLAMA_NUM_THREADS", "99999999999999999999"), ("PYLLAMA_NUM_THREADS", "2.5")])
def test_a_wrong_variable_leaves_the_reference_and_says_why(variable, value):
    said = python("-c", REPORT, **{variable: value}).stdout
    assert said.startswith("['numpy'] " + variable)
    assert value in said


@built
def test_a_blas_that_cannot_be_loaded_leaves_our_own_kernel_and_says_so(tmp_path):
    (tmp_path / "blas.so").write_text("no library")
    for path in ("/no/such/blas.so", str(tmp_path / "blas.so")):
        said = python("-c", "from pyllama import backend; print(backend.available(), backend.why_no_blas)",
                      PYLLAMA_BLAS=path).stdout
        assert said.startswith(f"['numpy', 'cpu'] PYLLAMA_BLAS={path}: ")
        assert "our own kernel computes matrix products" in said
        run = python("-m", "pyllama", "train", "--data", __file__, "--out_dir", str(tmp_path / f"run{len(path)}"),
                     "--hidden_size", "8", "--num_attention_heads", "1", "--num_hidden_layers", "1", "--max_steps", "1",
                     PYLLAMA_BLAS=path)
        assert run.stdout.startswith(f"PYLLAMA_BLAS={path}: ")
    assert "PYLLAMA_BLAS" not in python("-m", "pyllama", "env").stdout


def test_env_lists_the_variables_that_the_user_set_and_no_others():
    unset = "import os; os.environ.pop('OMP_WAIT_POLICY', None); from pyllama.cli import main; main(['env'])"
    assert "OMP_WAIT_POLICY" not in python("-c", unset).stdout
    assert "OMP_WAIT_POLICY" in python("-m", "pyllama", "env", OMP_WAIT_POLICY="active").stdout


WITHOUT_KERNELS = """
import shlex, sys
sys.modules["pyllama.cpu"] = None                       # as where it is not built
from pyllama.cli import main
for command in sys.argv[1:]:
    print("$", command, flush=True)
    assert main(shlex.split(command)) == 0, command
"""


@pytest.mark.parametrize("variable", ["PYLLAMA_NUM_THREADS", "PYLLAMA_ISA", "PYLLAMA_BLAS", "PYLLAMA_ARENA"])
def test_a_variable_of_the_kernels_stops_no_command_where_there_are_none(variable, tmp_path):
    commands = [["env"], ["ops"], ["models"], ["report", __file__], ["check", "relu", "--problems", "1"],
                ["train", "--data", __file__, "--out_dir", str(tmp_path / "run"), "--hidden_size", "8",
                 "--num_attention_heads", "1", "--num_hidden_layers", "1", "--max_steps", "1"]]
    run = python("-c", WITHOUT_KERNELS, *map(shlex.join, commands), **{variable: "1"})
    assert run.returncode == 0, run.stderr
    said = run.stdout.split("$ ")[1:]
    assert len(said) == len(commands)
    for env_or_train in said[0], said[-1]:
        assert "no C kernels:" in env_or_train or "none:" in env_or_train
