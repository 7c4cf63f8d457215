"""A process loads only what it needs, because the other modules would take up to a quarter of its memory.

NumPy, ml_dtypes, the tokenizers library and, for the command line, rich are needed, whatever they import themselves.
"""
import pytest

import pyllama
from bench.lean import measured
from pyllama.cli.commands import COMMANDS
from pyllama.text.tokenizer import Tokenizer
from tests.another import python

TEXT = "A row times a column is a number. " * 8
NEEDLESS = {
    "ssl", "numpy.f2py", "numpy.ma", "numpy.testing",
    "argparse", "asyncio", "decimal", "email", "http", "multiprocessing", "unittest", "urllib.request",
    "hypothesis", "jinja2", "matplotlib", "networkx", "pytest", "rdflib", "sympy", "torch",
    "pyllama.api", "pyllama.cuda", "pyllama.study", "pyllama.tasks", "pyllama.testing"}
OF_TRAINING = {"concurrent.futures", "logging", "pyllama.training.loop", "pyllama.training.run"}
NEEDLESS_TO_GENERATE = NEEDLESS | OF_TRAINING | {
    "numpy.random", "_hashlib",                                 # the former loads the latter, OpenSSL: 4 MB
    "difflib", "tomllib", "pyllama.cli"}
COMMAND_MODULES = {f"pyllama.cli.{place.split('.')[0]}" for place in COMMANDS.places.values()}
PROGRAM = """
import sys
import ml_dtypes, numpy, tokenizers
before = {*sys.modules}
import pyllama
pyllama.load(sys.argv[1]).generate("A row", max_new_tokens=3, do_sample=sys.argv[2] == "sample")
print(*{*sys.modules} - before)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = pyllama.create("llama", Tokenizer.byte_pairs([TEXT], 280), hidden_size=32, num_hidden_layers=1,
                           num_attention_heads=2, max_position_embeddings=16)
    for name in ("f32.gguf", "folder"):
        model.save(folder / name)
    model.quantize("q8_0").save(folder / "q8_0.gguf")
    return folder


def loaded(path, how):
    """The modules that are loaded to read a model and continue a text."""
    ran = python("-c", PROGRAM, str(path), how)
    assert ran.returncode == 0, ran.stderr
    return {*ran.stdout.split()}


@pytest.mark.parametrize("name", ["f32.gguf", "q8_0.gguf", "folder"])
def test_a_model_is_read_and_continues_a_text_without_modules_that_only_other_work_needs(models, name):
    modules = loaded(models / name, "greedy")
    assert "pyllama.generation.loop" in modules
    assert not modules & NEEDLESS_TO_GENERATE


def test_sampling_alone_loads_the_random_numbers(models):
    assert "numpy.random" in loaded(models / "f32.gguf", "sample")


def test_the_package_loads_nothing_but_the_standard_library():
    ran = python("-c", "import sys; before = {*sys.modules}; import pyllama; print(*{*sys.modules} - before)")
    assert {name for name in ran.stdout.split() if name.startswith(("pyllama", "numpy", "tokenizers"))} == {"pyllama"}


def test_the_package_takes_little_memory_until_it_is_used(tmp_path):
    assert measured([], tmp_path)["peak"] < 45


COMMAND = """
import sys
import ml_dtypes, numpy, numpy.random, rich.progress, tokenizers
before = {*sys.modules}
from pyllama.cli import main
code = main(sys.argv[1:])
print("\\nloaded", *{*sys.modules} - before)
sys.exit(code)
"""


def loaded_by(*words):
    """The modules that a command loads."""
    ran = python("-c", COMMAND, *map(str, words))
    assert ran.returncode == 0, ran.stderr
    return {*ran.stdout.rpartition("\nloaded ")[2].split()}


def test_a_command_does_not_load_those_of_others(models, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    train = loaded_by("train", "--data", tmp_path / "text.txt", "--out_dir", tmp_path / "run", "--n_layer", 1,
                      "--n_embd", 8, "--n_head", 2, "--block_size", 8, "--batch_size", 2, "--max_iters", 1)
    generate = loaded_by("generate", "--model", models / "q8_0.gguf", "--max_new_tokens", 3)
    assert train & COMMAND_MODULES == {"pyllama.cli.text"}
    assert generate & COMMAND_MODULES == {"pyllama.cli.generate"}
    assert not train & NEEDLESS
    assert not generate & (NEEDLESS | OF_TRAINING)
