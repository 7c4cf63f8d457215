"""The notebooks run and show what they say: as scripts, with few steps.  `make docs-test` runs them in full."""
import inspect
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pyllama.ops import rms_norm

pytest.importorskip("matplotlib", reason="needs the extra 'plot'")
pytest.importorskip("sympy", reason="needs the extra 'study'")
pytest.importorskip("IPython", reason="needs the extra 'docs'")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
FEWER = {
    "train_llama": {"STEPS = 800": "STEPS = 16", "hidden_size=128": "hidden_size=32",
                    "num_hidden_layers=4": "num_hidden_layers=1", "eval_tokens=10_000": "eval_tokens=500"},
    "own_op": {"SEEDS = 100": "SEEDS = 1"},
    "finetune_bert": {"PRETRAINING = 1000": "PRETRAINING = 4"},
}


@pytest.fixture
def run(tmp_path, monkeypatch, unregistered):
    """run(name): what the notebook defines, after a run as a script."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def script(name):
        text = (NOTEBOOKS / f"{name}.py").read_text("utf-8")
        for full, few in FEWER[name].items():
            assert text.count(full) == 1, full
            text = text.replace(full, few)
        path = tmp_path / f"{name}.py"
        path.write_text(text, "utf-8")
        return runpy.run_path(str(path))

    yield script
    sys.modules["matplotlib.pyplot"].close("all")


def test_every_notebook_is_run():
    assert sorted(FEWER) == sorted(path.stem for path in NOTEBOOKS.glob("*.py"))


def test_a_llama_is_trained_stopped_resumed_explained_and_saved(run):
    done = run("train_llama")
    losses = [record.loss for record in done["records"]]
    assert [record.step for record in done["records"]] == [*range(1, 17)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert [*done["held_out"]] == [*range(2, 17, 2)]
    assert done["report"]
    assert done["page"].read_bytes().startswith(b"<!doctype html>")
    assert done["again"].generate("A", max_new_tokens=5) == done["model"].generate("A", max_new_tokens=5)
    middle = len(done["nudges"]) // 2
    assert np.sign(done["nudged"][middle + 1] - done["nudged"][middle - 1]) == np.sign(done["slope"])


def test_bugs_of_an_op_are_found_and_its_derivation_holds(run):
    done = run("own_op")
    assert not done["report"]
    assert [pair.diagnoses[0].partition(":")[0] for pair in done["report"].pairs] == ["Missing term"] * 2
    assert 0 < done["at_ones"]["killed"] < done["at_ones"]["total"]
    assert done["at_random"]["killed"] == done["at_random"]["total"]
    assert not done["at_random"]["alarms"]
    outcomes = [*done["Run"](done["derivation"]).steps()]
    assert [outcome.wrong for outcome in outcomes] == [""] * len(done["derivation"].steps)
    assert [outcome.step.line for outcome in done["outcomes"] if outcome.wrong] == ["= dy p (q b_j - y a_j)"]
    assert done["checked"]
    assert [found.name for found in done["found"].properties if found.mistake] == ["aliasing"]
    assert done["corrected"]


def test_a_bert_learns_its_rows(run):
    done = run("finetune_bert")
    assert done["losses"][-1] < done["losses"][0]
    for name, losses in done["tuning"].items():
        assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 2, name
        same_words, other_words = done["scores"][name]
        assert same_words > other_words, name


def test_a_question_mark_behind_an_op_shows_its_derivation():
    """IPython asks inspect for both."""
    assert str(inspect.signature(rms_norm)) == "(x, w, *, eps=1e-05)"
    assert "Backward    g_j = w_j dy_j" in inspect.getdoc(rms_norm)


# --- the outputs that are kept for the site ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def site(site):
    pytest.importorskip("jupytext", reason="needs the extra 'docs'")
    pytest.importorskip("sphinx", reason="needs the extra 'docs'")
    return site


@pytest.mark.parametrize("name", FEWER)
def test_the_kept_outputs_are_those_of_the_code(site, name):
    pages = site("notebook_pages")
    assert len(pages.kept(name)) == len(pages.code(pages.read(name))), "make notebooks"


def test_outputs_of_other_code_are_refused(site, monkeypatch, tmp_path):
    pages = site("notebook_pages")
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    (tmp_path / "a.py").write_text("# %%\n1 + 1\n")
    pages.kept_file("a").write_text('{"digest": "of 1 + 2", "outputs": [[]]}')
    with pytest.raises(ValueError, match="run make notebooks"):
        pages.kept("a")


def test_a_change_of_text_alone_keeps_the_outputs(site, monkeypatch, tmp_path):
    pages = site("notebook_pages")
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    digests = set()
    for text in ("One.", "Two."):
        (tmp_path / "a.py").write_text(f"# %% [markdown]\n# {text}\n\n# %%\n1 + 1\n")
        digests.add(pages.digest(pages.read("a")))
    assert len(digests) == 1


def test_a_figure_needs_a_text_for_those_who_do_not_see_it(site):
    pages = site("notebook_pages")
    with pytest.raises(ValueError, match="needs a text"):
        pages.shown({pages.SVG: "<svg></svg>"}, "", "cell-0")


def test_figures_of_a_page_share_no_ids(site):
    svg = '<svg width="2pt"><defs><path id="m0a"/></defs><g id="axes_1"><use xlink:href="#m0a"/></g></svg>'
    drawn = site("notebook_pages").figure(svg, "two axes", "cell-3")
    assert drawn == ('<svg role="img" aria-label="two axes"><defs><path id="m0a-cell-3"/></defs>'
                     '<g><use xlink:href="#m0a-cell-3"/></g></svg>')


# --- how outputs are kept ---------------------------------------------------------------------------------------------

@pytest.fixture
def execute(site):
    pytest.importorskip("nbclient", reason="needs the extra 'docs'")
    return site("execute")


def test_a_figure_loses_its_date_and_digits_but_no_number_that_is_read(execute):
    drawn = """<?xml version="1.0"?>
<svg><metadata><dc:date>2026-01-01</dc:date></metadata> <path d="M 1.23456 7.5"/><text>0.002</text></svg>"""
    assert execute.small(drawn) == '<svg><path d="M 1.23 7.5"/><text>0.002</text></svg>'


def test_an_output_is_kept_in_the_form_that_a_notebook_shows(execute):
    forms = {"text/plain": "<Report>", "text/html": "<div></div>"}
    output = execute.nbformat.v4.new_output("execute_result", forms)
    assert execute.best(output) == ("text/html", "<div></div>")


def test_warnings_are_not_kept(execute):
    output = execute.nbformat.v4.new_output("stream", name="stderr", text="UserWarning: 1 of 2 rows")
    with pytest.raises(ValueError, match="standard error: UserWarning"):
        execute.best(output)
