"""The two passes of a block in pairs, and the map of what depends on what."""
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sympy", reason="the extra 'docs' is not installed")
from pyllama.op import OPS
from pyllama.study import derivation

ROOT = Path(__file__).parents[1]


# --- passes.py --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def block():
    (one,), _ = derivation.load("llama_block")
    return one


@pytest.fixture(scope="module")
def both(site, block):
    return site("passes").passes(block)


def test_every_step_of_the_block_stands_in_one_row(both, block):
    shown = [line.number for row in both.rows() for line in (row.forward, *row.backward)]
    assert sorted(shown) == list(range(1, len(block.steps) + 1))


def test_a_gradient_stands_beside_the_first_line_that_uses_its_value(both):
    beside = {line.defines: row.forward.defines for row in both.rows() for line in row.backward}
    assert {name: beside[name] for name in ("dWq", "dWk", "dk'", "dp", "dWd", "da")} == {
        "dWq": "q", "dWk": "k", "dk'": "z", "dp": "o", "dWd": "y", "da": "x'"}                 # one use
    assert {name: beside[name] for name in ("dx", "dn", "dx'", "dn'")} == {
        "dx": "ρ", "dn": "q", "dx'": "ρ'", "dn'": "c"}                                         # several
    assert {name: [line.defines for line in both.uses(name[1:])] for name in ("dx", "dn", "dx'", "dn'")} == {
        "dx": ["ρ", "m", "x'"], "dn": ["q", "k", "v"], "dx'": ["ρ'", "m'", "y"], "dn'": ["c", "u"]}


def test_the_lines_without_gradients_are_those_of_the_page(both):
    assert [row.forward.defines for row in both.rows() if not row.backward] == ["m", "P", "θ", "A", "p", "m'", "σ"]


def test_each_column_can_be_computed_in_the_order_in_which_it_is_read(both, block):
    rows = both.rows()
    forward = [row.forward for row in rows]
    upwards = [line for row in reversed(rows) for line in reversed(row.backward)]
    for column, given in ((forward, block.arrays.keys()), (upwards, {"dy"})):
        seen, own = set(given), {line.defines for line in column}
        for line in column:
            assert line.uses & own <= seen, line
            seen.add(line.defines)


def changed(one, old, new):
    assert sum(step.line == old for step in one.steps) == 1
    return replace(one, steps=tuple(step._replace(line=new) if step.line == old else step for step in one.steps))


@pytest.mark.parametrize(("line", "without"), [
    ("dn'_td = Σ_f (dc_tf Wa_fd + du_tf Wu_fd)", "dn'_td = Σ_f dc_tf Wa_fd"),
    ("dx'_td = dy_td + ρ'_t (dm'_td - m'_td mean_e m'_te dm'_te)",
     "dx'_td = ρ'_t (dm'_td - m'_td mean_e m'_te dm'_te)"),
    ("dz_grts = p_grts (dp_grts - Σ_s p_grts dp_grts)", "dz_grts = p_grts"),
])
def test_a_gradient_that_leaves_out_a_use_is_found(site, block, line, without):
    with pytest.raises(ValueError, match="leaves out a use of "):
        site("passes").passes(changed(block, line, without)).rows()


def test_the_page_says_rightly_what_is_needed_again(both):
    """Products need their factors, nonlinear functions their points or results, sums nothing."""
    needed = [line.defines for line in both.forward if both.again(line.defines)]
    assert needed == ["ρ", "m", "n", "v", "A", "q'", "k'", "p", "o", "ρ'", "m'", "n'", "c", "u", "σ", "h"]


def test_a_value_has_the_axes_that_the_formulas_leave_out_if_it_depends_on_them(site, both, block):
    axes = {line.defines: site("passes").axes(line, block, both.forward) for line in both.forward
            if line.defines != "σ"}
    assert {name: axes[name] for name in ("P", "A", "ρ", "n", "q", "p", "h")} == {
        "P": "", "A": "T K K", "ρ": "B T", "n": "B T D", "q": "B G R T K", "p": "B G R T T", "h": "B T F"}


# --- joined.py --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def joined(site):
    return site("joined")


@pytest.mark.parametrize("name", sorted(OPS))
def test_an_op_is_joined_with_its_derivation_its_kernels_and_the_test_of_all_ops(joined, name):
    found = joined.joined(name)
    assert name in found["derivation"]
    assert found["kernel"] == [path.name for path in sorted((*ROOT.glob(f"csrc/cpu/{name}.c"),
                                                             *ROOT.glob(f"csrc/cuda/{name}.cu")))]
    assert "test_ops.py" in found["test"]
    assert all((ROOT / "tests" / file).exists() for file in found["test"])


def test_lemmas_are_those_that_a_derivation_refers_to_and_those_that_refer_to_it(joined):
    assert {"attention", "softmax", "llama_block"} <= set(joined.derivations("attention"))
    assert "attention" in joined.derivations("softmax")
    assert "gelu" not in joined.derivations("attention")


def test_a_model_is_joined_with_the_ops_that_it_calls_through_its_layers(joined):
    assert {"rms_norm", "add_rms_norm", "rope", "attention", "swiglu"} <= joined.calls("llama")
    assert joined.calls("llama").isdisjoint({"layer_norm", "gelu", "lstm_cell"})
    assert "tanh" in joined.calls("bert"), "with its head for classes alone"
    assert joined.calls("glove") == {"glove"}
    assert all(joined.calls(kind) for kind in joined.FAMILIES)


def test_the_models_of_an_op_are_those_that_call_it(joined):
    assert joined.models("rope") == ["llama", "mistral", "qwen2", "qwen3"]
