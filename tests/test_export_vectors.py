"""Golden cases of ops: deterministic, complete, within their tolerances, and read by a program in C."""
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pyllama.cli import main
from pyllama.op import OPS
from pyllama.ops import attention, rms_norm
from pyllama.testing.catalogue import bugs, planted
from pyllama.testing.layouts import strided
from pyllama.testing.vectors import KINDS, golden

KERNELS = Path(__file__).parents[1] / "docs/kernels"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    assert main(["export-vectors", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def index(folder):
    return json.loads((folder / "index.json").read_text("utf-8"))


def names_in(value):
    """Every name of a tensor in an entry of the index."""
    if isinstance(value, dict):
        yield from (name for part in value.values() for name in names_in(part))
    elif isinstance(value, list):
        yield from (name for part in value for name in names_in(part))
    elif isinstance(value, str) and "/" in value:
        yield value


def test_the_index_names_every_tensor_and_every_op(folder, index):
    assert {*index["ops"]} == {*OPS}
    for name, entry in index["ops"].items():
        assert entry["shapes"] == OPS[name].shapes
        for dtype in ("float64", "float32"):
            file = entry["files"][dtype]
            tensors = load_file(folder / file["file"])
            named = {*names_in(file["cases"])}
            others = {n for n in tensors if n.split("/")[1] in ("tolerance", "option")}
            assert named == tensors.keys() - others
            for case in file["cases"]:
                for number in case["inputs"].values():
                    assert tensors[number].dtype in (np.dtype(dtype), np.int64)


def test_the_tolerances_of_the_index_are_those_of_the_file(folder, index):
    for entry in index["ops"].values():
        for file in entry["files"].values():
            tensors = load_file(folder / file["file"])
            for case in file["cases"]:
                results = [*case["outputs"].values(), *case["gradients"].values(), *filter(None, case["saved"])]
                for result in results:
                    if "tolerance" in result:
                        number, _, rest = result["tensor"].partition("/")
                        assert tensors[f"{number}/tolerance/{rest}"] == result["tolerance"] > 0
                        assert np.isfinite(result["tolerance"])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_op_itself_passes_from_the_files_alone(folder, index, name, dtype):
    """On its kernels.  The order of inputs, optional ones among them, follows from the names."""
    file = index["ops"][name]["files"][dtype]
    tensors = load_file(folder / file["file"])
    assert not [*misses(OPS[name], tensors, file["cases"])]


def misses(op, tensors, cases, lay_out=np.array):
    """The results of the op that are further from a file's than the tolerance."""
    for case in cases:
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in case["options"].items()}
        given = {x.name: lay_out(tensors[case["inputs"][x.name]]) if x.name in case["inputs"] else None
                 for x in op.inputs}
        last = max(i for i, x in enumerate(given.values()) if x is not None)
        y, back = op(*list(given.values())[:last + 1], **options)
        dy = tuple(lay_out(tensors[case["dy"][y.name]]) for y in op.outputs)
        results = dict(zip([y.name for y in op.outputs], op.each(y), strict=True))
        grads = dict(zip(given, back(dy if len(dy) > 1 else dy[0]), strict=False))
        for wanted, got in ((case["outputs"], results), (case["gradients"], grads)):
            for name, result in wanted.items():
                error = np.abs(got[name] - tensors[result["tensor"]]).max(initial=0)
                if not error <= result["tolerance"]:
                    yield case["case"], name, error


def test_a_bug_misses_the_numbers():
    """A file has no strides: whoever reads it may lay its arrays out in another way.  It shows no written-over dy."""
    tensors, cases = golden(rms_norm, seed=1)
    assert not [*misses(rms_norm, tensors, cases)]
    missed = set()
    for bug in bugs("rms_norm"):
        with planted(bug):
            found = [*misses(rms_norm, tensors, cases), *misses(rms_norm, tensors, cases, strided)]
        missed |= set() if found else {bug.name}
    assert missed == {"dy_overwritten"}


def test_what_is_saved_serves_the_backward_pass():
    """backward(dy, *saved) of the file's own arrays gives the file's gradients."""
    for dtype in ("float64", "float32"):
        tensors, cases = golden(attention, dtype, count=20, seed=2)
        for case in cases:
            saved = [None if entry is None else tensors[entry["tensor"]] for entry in case["saved"]]
            grads = attention.backward(tensors[case["dy"]["y"]].astype("float64"), *saved, **case["options"])
            for x, dx in zip(attention.inputs, grads, strict=True):
                if x.name in case["gradients"]:
                    result = case["gradients"][x.name]
                    assert np.abs(dx - tensors[result["tensor"]]).max(initial=0) <= result["tolerance"]


def test_the_kinds_of_cases_take_turns():
    _, cases = golden(attention, count=7)
    assert [case["kind"] for case in cases] == [*KINDS, *KINDS][:7]
    tensors, cases = golden(rms_norm, count=8)
    assert [case["kind"] for case in cases] == ["small", "options", "empty", "sizes"] * 2
    assert tensors["2/input/x"].size == 0
    assert tensors["1/option/eps"] != tensors["0/option/eps"] == 1e-5


def test_the_same_seed_gives_the_same_bytes_whichever_ops_are_asked_for(folder, tmp_path):
    assert main(["export-vectors", str(tmp_path / "one"), "--op", "gelu", "rope"]) == 0
    for name in ("gelu.float64", "gelu.float32", "rope.float64"):
        file = f"{name}.safetensors"
        assert (tmp_path / "one" / file).read_bytes() == (folder / file).read_bytes()
    assert main(["export-vectors", str(tmp_path / "other"), "--op", "gelu", "--seed", "1"]) == 0
    assert (tmp_path / "other/gelu.float64.safetensors").read_bytes() != \
        (folder / "gelu.float64.safetensors").read_bytes()


@pytest.mark.parametrize(("words", "sentence"), [
    (["--op", "gleu"], "there is no op 'gleu'; did you mean gelu?"),
    (["--count", "0"], "count is 0; it must be at least 1")])
def test_wrong_use_is_one_sentence_and_writes_nothing(words, sentence, tmp_path, capsys):
    assert main(["export-vectors", str(tmp_path / "new"), *words]) == 2
    assert " ".join(capsys.readouterr().err.split()) == f"pyllama: {sentence}"
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export-vectors", str(tmp_path / "file")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype is 'float16'; it must be 'float64' or 'float32'"):
        golden(rms_norm, "float16")


CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_cc = pytest.mark.skipif(not CC, reason="no C compiler (cc, gcc, clang) on this machine")


def compiled(source, target, real):
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", f"-DREAL={real}"]
    subprocess.run([CC, *flags, "-o", target, source, "-lm"], check=True)
    return target


@needs_cc
@pytest.mark.parametrize(("real", "dtype"), [("double", "float64"), ("float", "float32")])
def test_the_reader_in_c_accepts_a_right_kernel_and_refuses_a_wrong_one(folder, tmp_path, real, dtype):
    file = folder / f"rms_norm.{dtype}.safetensors"
    right = subprocess.run([compiled(KERNELS / "check_vectors.c", tmp_path / "right", real), file],
                           capture_output=True, text=True, check=False)
    assert (right.returncode, right.stdout, right.stderr) == (0, "10 cases\n", "")
    shutil.copy(KERNELS / "check_vectors.c", tmp_path)
    kernel = (KERNELS / "rms_norm.c").read_text("utf-8")
    assert kernel.count("x[n][d] * r * gn") == 1
    (tmp_path / "rms_norm.c").write_text(kernel.replace("x[n][d] * r * gn", "x[n][d] * gn"), "utf-8")
    wrong = subprocess.run([compiled(tmp_path / "check_vectors.c", tmp_path / "wrong", real), file],
                           capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "gradient/x is off by" in wrong.stdout
    assert "gradient/w" not in wrong.stdout


@needs_cc
def test_the_reader_in_c_says_what_it_cannot_read(folder, tmp_path):
    program = compiled(KERNELS / "check_vectors.c", tmp_path / "check", "double")
    for path, sentence in ((folder / "rms_norm.float32.safetensors", "wrong dtype of 0/input/x"),
                           (folder / "tanh.float64.safetensors", "the file has no 0/input/w"),
                           (folder / "index.json", "not a file of tensors"), (folder / "none", "cannot open")):
        run = subprocess.run([program, path], capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert sentence in run.stderr
