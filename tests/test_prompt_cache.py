"""A prompt kept on the disk: texts are the same, what is kept is not read again, and no other model takes it."""
import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest

from pyllama import backend, params
from pyllama.cli import main
from pyllama.errors import UserError
from pyllama.formats.safetensors import read_tensors, to_safetensors
from pyllama.generation import GenerationConfig, generate, prompt_cache
from pyllama.generation.window import Window
from pyllama.models import bart
from pyllama.quantization import EncodedArray
from tests import chains
from tests.test_generate import each_case, model
from tests.test_models import BART, randomized

PROMPT = [3, 1, 4, 1, 5, 9]


@pytest.fixture
def read(monkeypatch):
    """The tokens that each pass read."""
    passes = []
    extend = Window.extend
    monkeypatch.setattr(Window, "extend", lambda self, tokens, every=False:
                        passes.append(tokens[0]) or extend(self, tokens, every))
    return passes


@each_case
@pytest.mark.parametrize("kernels", ["c", "numpy"])
@pytest.mark.parametrize("changes", [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2}])
def test_texts_are_the_same_and_what_is_kept_is_not_read_again(case, kernels, changes, tmp_path, read):
    p, c = model(case)
    settings = GenerationConfig(max_new_tokens=12, **changes)
    kept = replace(settings, prompt_cache=str(tmp_path / "prompt"))
    with backend.use("numpy") if kernels == "numpy" else contextlib.nullcontext():
        for prompt, first in ((PROMPT, PROMPT), (PROMPT, PROMPT[-1:]), ([*PROMPT, 2, 6], [2, 6]), (PROMPT[:3], [4]),
                              ([3, 1, 7, 7], [7, 7]), ([8], [8]), ([8], [8])):
            wanted = generate(p, c, [prompt], settings=settings)
            read.clear()
            assert [replace(got, score=None) for got in generate(p, c, [prompt], settings=kept)] == \
                [replace(result, score=None) for result in wanted]
            assert read[0] == first


def test_a_file_of_one_kind_of_session_continues_in_the_other(tmp_path, read):
    p, c = model("gqa")
    settings = GenerationConfig(max_new_tokens=12, prompt_cache=str(tmp_path / "prompt"))
    wanted = generate(p, c, [PROMPT], settings=settings)
    with backend.use("numpy"):
        assert generate(p, c, [PROMPT], settings=settings) == wanted
        assert PROMPT[-1:] in read
        (tmp_path / "prompt").unlink()
        generate(p, c, [PROMPT], settings=settings)
    read.clear()
    assert generate(p, c, [PROMPT], settings=settings) == wanted
    assert read[0] == PROMPT[-1:]


def test_the_longer_of_two_prompts_that_begin_alike_is_kept(tmp_path):
    p, c = model("gqa")
    settings = GenerationConfig(max_new_tokens=2, prompt_cache=str(tmp_path / "prompt"))
    for prompt, kept in ((PROMPT, PROMPT), (PROMPT[:2], PROMPT), ([*PROMPT, 7], [*PROMPT, 7]), ([3, 8], [3, 8])):
        generate(p, c, [prompt], settings=settings)
        assert read_tensors(tmp_path / "prompt")["ids"].tolist() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]


def changed(p, name, f):
    """A copy of the tree in which f changed one parameter."""
    return params.rebuild(p, (f(a.copy()) if n == name else a for n, a in params.leaves(p)))


def nudged(a):
    """The array with another last bit of one number."""
    a.reshape(-1)[a.size // 2] = np.nextafter(a.reshape(-1)[a.size // 2], 9)
    return a


@pytest.mark.parametrize("other", [
    lambda p, c: (changed(p, "model.layers.1.mlp.up_proj.weight", nudged), c),
    lambda p, c: (changed(p, "model.norm.weight", nudged), c),
    lambda p, c: (changed(p, "lm_head.weight", lambda a: a[::-1].copy()), c),
    lambda p, c: (params.rebuild(p, (a.astype("float32") for _, a in params.leaves(p))), c),
    lambda p, c: (p, replace(c, rope_theta=100.0)),
])
def test_a_file_of_another_model_is_refused(other, tmp_path):
    p, c = model("gqa")
    settings = GenerationConfig(max_new_tokens=2, prompt_cache=str(tmp_path / "prompt"))
    generate(p, c, [PROMPT], settings=settings)
    before = (tmp_path / "prompt").read_bytes()
    with pytest.raises(UserError, match="keeps a prompt of another model; give another file, or delete it"):
        generate(*other(p, c), [PROMPT], settings=settings)
    assert (tmp_path / "prompt").read_bytes() == before
    generate(p, replace(c, eos_token_id=7), [PROMPT], settings=settings)        # where a text ends is no matter


def test_the_fingerprint_of_encoded_matrices_is_that_of_their_bytes():
    c = model("gqa")[1]
    marks = [prompt_cache.fingerprint({"w": EncodedArray.of(x, "q8_0")}, c) for x in (np.eye(2, 32), np.eye(2, 32),
                                                                                       2 * np.eye(2, 32))]
    assert (marks[0] == marks[1]).all()
    assert (marks[0] != marks[2]).any()


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
    (lambda path: path.write_bytes(b"a text"), "cannot be read; give the name of another file"),
    (lambda path: (path.unlink(), path.mkdir()), "cannot be read; give the name of another file"),
    (lambda path: path.write_bytes(b"".join(map(bytes, to_safetensors({"w": np.ones(3)})))), "is not a prompt cache"),
    (lambda path: path.write_bytes(b"".join(map(bytes, to_safetensors({
        name: a[:, :2] if a.ndim == 3 else a for name, a in read_tensors(path).items()})))), "is damaged"),
])
def test_a_file_that_cannot_be_used_is_refused(spoil, message, tmp_path):
    p, c = model("gqa")
    settings = GenerationConfig(max_new_tokens=2, prompt_cache=str(tmp_path / "prompt"))
    generate(p, c, [PROMPT], settings=settings)
    spoil(tmp_path / "prompt")
    with pytest.raises(UserError, match=message):
        generate(p, c, [PROMPT], settings=settings)


def test_what_cannot_be_kept_is_refused(tmp_path):
    p, c = model("gqa")
    settings = GenerationConfig(prompt_cache=str(tmp_path / "prompt"))
    with pytest.raises(UserError, match="prompt_cache keeps one prompt, but there are 2; give one, or remove it"):
        generate(p, c, [[1], [2]], settings=settings)
    with pytest.raises(UserError, match="the prompt has 17 tokens and the context 16"):
        generate(p, c, [[1] * 17], settings=settings)
    with pytest.raises(UserError, match="cannot write"):
        generate(p, c, [[1]], settings=replace(settings, prompt_cache=str(tmp_path / "absent/prompt")))
    target = bart.BartConfig(**BART)
    with pytest.raises(UserError, match="keeps the prompt of a decoder"):
        generate(randomized(bart, target), target, [[1]], settings=settings)


def test_the_command_keeps_a_prompt(tmp_path, capsys):
    chains.model({}).save(tmp_path / "model")
    argv = ["generate", "--model", str(tmp_path / "model"), "--prompt", "ab", "--temperature", "0", "--prompt_cache",
            str(tmp_path / "prompt"), "--max_new_tokens", "3"]
    texts = [(main(argv), capsys.readouterr().out) for _ in range(2)]
    assert texts[0] == texts[1]
    assert read_tensors(tmp_path / "prompt")["ids"].tolist() == [2, 3]
    settings = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(settings | {"rms_norm_eps": 0.1}))
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.err.startswith("pyllama: ")
    assert "keeps a prompt of another model" in said.err
    assert said.out == "ab\n"                                           # so that the message has a line of its own
