"""The chapters on training and on the textbook's block: a false statement stops the build of the site."""
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
pytest.importorskip("sympy", reason="the extra 'docs' is not installed")
from docutils import nodes

from pyllama.training import loop
from pyllama.training.optim import AdamW

SITE = Path(__file__).parents[1] / "docs" / "site"


@pytest.mark.parametrize("path", ["pyllama/ops/relu.py", "pyllama/testing/catalogue/relu.toml", "csrc/kernels.h",
                                  "csrc/cpu/relu.c", "csrc/cpu/relu.pxi", "docs/site/_ext/training_facts.py"])
def test_a_result_is_not_kept_when_a_file_changes_that_it_depends_on(site, monkeypatch, tmp_path, path):
    kept = site("kept")
    assert (SITE.parents[1] / path).is_file()
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("1")
    before = kept.fingerprint.__wrapped__()
    (tmp_path / path).write_text("2")
    assert kept.fingerprint.__wrapped__() != before


# --- the block --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("part", ["", "residual"])
def test_the_formulas_of_the_block_are_what_its_code_computes(site, part):
    assert "h_tf" in " ".join(site("textbook_facts").formulas(part))


@pytest.mark.parametrize(("right", "wrong"), [
    ("z_td = r_td + Σ_f C_df h_tf + c_d", "z_td = Σ_f C_df h_tf + c_d"),
    ("r_td = x_td + y_td", "r_td = y_td"),
])
def test_a_wrong_formula_of_the_block_stops_the_build(site, monkeypatch, right, wrong):
    facts = site("textbook_facts")
    monkeypatch.setattr(facts, "RESIDUAL", tuple(wrong if line == right else line for line in facts.RESIDUAL))
    with pytest.raises(ValueError, match="o is not the same"):
        facts.formulas("residual")


@pytest.mark.parametrize("part", ["positions", "residual", "norm"])
def test_a_part_without_effect_stops_the_build(site, monkeypatch, part):
    facts = site("textbook_facts")
    plain = facts.last_scores
    assert facts.change_of(part, True) != facts.change_of(part, False)
    monkeypatch.setattr(facts, "last_scores", lambda ids, p, c: plain(ids, p, facts.PLAIN))
    with pytest.raises(ValueError, match="the scores change by"):
        facts.change_of(part, True)


def test_the_measured_table_is_that_of_the_docs(site):
    lines = [line for line in (SITE.parent / "textbook.md").read_text("utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.astext() for cell in row] for row in site("textbook_facts").measured("", True).findall(nodes.row)]
    shown = [f"| {' | '.join(row)} |".replace("| with ", "| + ") for row in rows]
    assert shown == [lines[0], *lines[2:]]


# --- training ---------------------------------------------------------------------------------------------------------

def test_micro_batches_have_the_gradient_of_the_batch(site):
    facts = site("training_facts")
    assert [facts.distances(k)[0] <= facts.CLOSE for k in facts.CUTS] == [True] * 4


def test_micro_batches_with_a_divisor_of_their_own_stop_the_build(site, monkeypatch):
    def of_pieces(state, batch, settings, grads):
        pieces = len(batch.inputs["ids"]) // settings.micro_batch_size if settings.micro_batch_size else 1
        return loop.gradient(state, batch._replace(targets=batch.targets / pieces), settings, grads)

    facts = site("training_facts")
    monkeypatch.setattr(facts, "gradient", of_pieces)
    with pytest.raises(ValueError, match="the gradients are"):
        facts.distances(2)


def test_a_resume_that_forgets_stops_the_build(site, monkeypatch):
    facts = site("training_facts")
    assert facts.difference("nothing") == 0
    monkeypatch.setattr(AdamW, "load", lambda self, state: None)
    with pytest.raises(ValueError, match="without nothing"):
        facts.difference("nothing")


def test_every_schedule_has_a_diagram_within_its_frame(site):
    facts = site("training_facts")
    for name in facts.SCHEDULES:
        points = facts.diagram(name).partition('points="')[2].partition('"')[0].split()
        assert len(points) == facts.RUN["max_steps"] // 5 + 1
        heights = [float(point.partition(",")[2]) for point in points]
        assert min(heights) == pytest.approx(facts.y(1.0), abs=0.05)
        assert max(heights) <= facts.HEIGHT
