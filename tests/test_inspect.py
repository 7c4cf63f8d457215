"""The command ops: the list of ops, and all there is to read about one."""
import inspect

import pytest

from pyllama.cli import main
from pyllama.op import OPS


def printed(capsys, *names):
    assert main(["ops", *names]) == 0
    return capsys.readouterr().out


def test_all_ops_are_listed(capsys):
    assert [line.split()[0] for line in printed(capsys).splitlines()] == sorted(OPS)


def test_an_op_is_printed_with_its_derivation_its_facts_and_its_code(capsys):
    out = printed(capsys, "rms_norm")
    assert "∂r/∂x_j = -½ r³ · 2 x_j / D" in out
    assert "\nShapes      x[... D], w[D] -> y[... D]\nOptions     eps=1e-05; tests draw it from 0.001 to 1\n" in out
    assert f"\nFile        {OPS['rms_norm'].forward.__code__.co_filename}\nSteps       pyllama derive rms_norm\n" in out
    assert out.count("The mean square of (1, 7)") == 1                      # the code comes without the docstring
    assert out.endswith('"x[... D], w[D] -> y[... D]", forward, backward, weights=("w",), eps=between(1e-3, 1.0))\n')


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_is_printed_with_its_options_and_both_passes(name, capsys):
    out = printed(capsys, name)
    facts = out.partition("\nShapes ")[2].partition("\nBackends ")[0]
    assert [option for option in OPS[name].options if f" {option}" not in facts] == []
    assert inspect.getsource(OPS[name].forward) in out
    assert inspect.getsource(OPS[name].backward) in out


def test_the_default_is_the_one_of_the_code(capsys):
    """Options that go on to another op have none here."""
    out = printed(capsys, "linear_cross_entropy")
    assert "chunk=None; tests draw it from None, 3, 64\n" in out
    assert "label_smoothing; tests draw it from 0 to 0.5\n" in out
    assert "scaling=None; tests draw it from the values below\n" in printed(capsys, "rope")
