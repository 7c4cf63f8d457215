"""Generation loads only what it needs, because each of the other modules costs every process that generates megabytes.

NumPy, ml_dtypes and the tokenizers library are needed, whatever they import themselves.
"""
import pytest

import pyllama
from pyllama.text.tokenizer import Tokenizer
from tests.another import python

TEXT = "A row times a column is a number. " * 8
NEEDLESS = {
    "_hashlib", "ssl",                                          # OpenSSL: 4 MB
    "numpy.f2py", "numpy.ma", "numpy.random", "numpy.testing",
    "argparse", "asyncio", "concurrent.futures", "decimal", "difflib", "email", "http", "logging", "multiprocessing",
    "tomllib", "unittest", "urllib.request",
    "hypothesis", "jinja2", "matplotlib", "networkx", "pytest", "rdflib", "sympy", "torch",
    "pyllama.api", "pyllama.cli", "pyllama.cuda", "pyllama.study", "pyllama.tasks", "pyllama.testing",
    "pyllama.training.loop", "pyllama.training.run"}
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
    assert not modules & NEEDLESS


def test_sampling_alone_loads_the_random_numbers(models):
    assert "numpy.random" in loaded(models / "f32.gguf", "sample")
