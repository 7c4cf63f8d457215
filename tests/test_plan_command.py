"""The command plan: the dynamic graph and the static plan of a token."""
import re

import pytest

import pyllama
from pyllama import backend
from pyllama.cli import main
from pyllama.cli.plan import folded
from pyllama.params import leaves
from tests.shared import written


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(family) is the folder of a model with 3 layers."""
    def folder(family, head=None):
        path = tmp_path_factory.mktemp(family)
        text = written(path / "text.txt", "a longer text than the context has tokens\n")
        pyllama.create(family, text, tokenizer="bpe", vocab_size=300, hidden_size=8, num_hidden_layers=3,
                       num_attention_heads=2, head=head, max_position_embeddings=20).save(path / "model")
        return path / "model"

    return folder


def steps_of(text, title):
    """The lines of a table, each as often as it says."""
    lines, times = [], 1
    for line in text.partition(f"the {title}: ")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines():
        if match := re.fullmatch(r"  (\d+) times:", line):
            times = int(match[1])
        else:
            lines += [line.split()[0]] * (times if line.startswith("    ") else 1)
    return lines


@pytest.mark.parametrize(("family", "head", "calls", "steps"), [
    ("llama", None, 3 + 3 * 13, 2 + 3 * 5 + 2), ("gpt2", None, 4 + 3 * 8, 2 + 3 * 5 + 2),
    ("bart", "seq2seq", None, 3 + 3 * 8 + 2)])
@pytest.mark.parametrize("flags", [[], ["--prompt", "a longer text than the context has tokens"]], ids=str)
def test_both_graphs_are_shown_with_all_their_ops_and_steps(family, head, calls, steps, flags, saved, capsys):
    assert main(["plan", str(saved(family, head)), *flags]) == 0
    out = capsys.readouterr().out
    for title, noun, expected in (("dynamic graph", "call", calls), ("static plan", "step", steps)):
        count = int(re.search(rf"the {title}: (\d+) {noun}s", out)[1])
        assert count == len(steps_of(out, title)) == (expected or count)
    assert "    attend        y = 2 heads of qkv, with the cache\n" in out
    assert "linear        " in out
    assert ("ms a token by the graph" in out) == bool(backend.cpu)
    assert ("with the memory" in out) == (family == "bart")


def test_the_bytes_are_those_of_the_matrices(saved, capsys):
    path = saved("llama")
    main(["plan", str(path)])
    out = capsys.readouterr().out
    model = pyllama.load(path)
    matrices = sum(a.nbytes for name, a in leaves(model.params) if a.ndim == 2 and "embed_tokens" not in name)
    assert f"a token reads {matrices / 1e6:,.1f} MB of matrices" in out


def test_a_model_that_does_not_write_is_refused(saved, capsys):
    assert main(["plan", str(saved("bert"))]) == 2
    assert "is a bert that does not write token by token" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "blocks"), [
    ("abcbcd", [(1, "a"), (2, "bc"), (1, "d")]), ("aaa", [(3, "a")]), ("abc", [(1, "abc")]), ("a", [(1, "a")])])
def test_equal_layers_are_shown_once(text, blocks):
    assert [(count, "".join(block)) for count, block in folded(list(text))] == blocks
