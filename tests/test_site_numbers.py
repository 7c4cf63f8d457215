"""The chapters on cost, memory and rounding: what they compute, and that they refuse what is false."""
import doctest
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
pytest.importorskip("myst_parser", reason="the extra 'docs' is not installed")
pytest.importorskip("sympy", reason="the extra 'docs' is not installed")

from bench.sizes import SIZES
from bench.train_pyllama import training
from pyllama import backend, params
from pyllama.models import llama
from pyllama.op import OPS
from tests.test_widgets import in_javascript

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
needs_kernels = pytest.mark.skipif(backend.cpu is None, reason=backend.why_no_cpu)


# --- what is false stops the build ------------------------------------------------------------------------------------

def test_a_session_that_prints_something_else_is_refused(site):
    with pytest.raises(ValueError, match="Expected:\n    3\nGot:\n    2"):
        site("computed").require(">>> 1 + 1\n3", {})


def test_a_session_goes_on_with_the_names_of_the_last_one(site):
    names = {}
    site("computed").require(">>> a = 1", names)
    site("computed").require(">>> a + 1\n2", names)


@pytest.mark.parametrize(("about", "right", "line", "wrong"), [
    ("counting", "M = 4 P", "M = 3 P", "is not"),
    ("counting", "M = 4 P", "Z = 4 P", "does not have this name"),
    ("x_nd w_ed dy_ne", "y_ne = Σ_d w_ed x_nd", "dw_ed = Σ_n dy_ne", "is not"),
    ("x_i", "μ = mean_i x_i", "mean_i x_i² = μ²", "is not"),
])
def test_a_formula_that_does_not_hold_is_refused(site, about, right, line, wrong):
    claims = site("claims")
    run = claims.about(about)
    claims.require(run, [right])
    with pytest.raises(ValueError, match=wrong):
        claims.require(run, [line])


@pytest.mark.parametrize(("page", "file", "quotes"), [
    ("memory", "bench/README.md", ["2,560 MiB", "3,059", "290", "230 tokens/s"]),
    ("numerics", "csrc/kernels.h", ["BLOCKS = 64"]),
])
def test_a_file_that_a_page_cites_has_its_numbers(page, file, quotes):
    text = (SITE / f"{page}.md").read_text("utf-8")
    assert f"`{file}`" in text
    for quote in quotes:
        assert quote in (ROOT / file).read_text("utf-8")
        assert next(word for word in quote.split() if word[0].isdigit()) in text


def test_a_page_says_how_much_is_measured(site):
    text, rounding = " ".join((SITE / "numerics.md").read_text("utf-8").split()), site("rounding")
    assert f"{rounding.DRAWS} sums" in text
    assert f"{rounding.LANES} sums of float32" in text
    assert f"{rounding.PROBLEMS} random calls" in text


# --- counts -----------------------------------------------------------------------------------------------------------

def test_the_counted_parameters_are_those_of_the_model(site):
    c, _, _ = site("counts").model("tiny")
    size = sum(leaf.size for _, leaf in params.leaves(llama.init(c)))
    assert site("counts").counted("tiny")["P"] == size
    assert site("counts").counted("LLaMA 7B")["P"] == 6_738_415_616        # as Hugging Face has it


def test_as_many_tokens_have_activations_as_a_training_step_runs_at_a_time(site, monkeypatch):
    pieces = []

    def loss(ids, *args, **kwargs):
        pieces.append(ids[:, 1:].size)
        return original(ids, *args, **kwargs)

    original = llama.loss
    monkeypatch.setattr(llama, "loss", loss)
    _, records = training(SIZES["T"], ["--shards", str(site("counts").SHARDS)])
    next(records)
    assert site("counts").SHARDS * max(pieces) == site("counts").at_once("T")
    assert sum(pieces) == SIZES["T"].tokens


def test_operations_are_those_of_the_benchmark_but_for_the_diagonal(site):
    """It counts T / 2 keys for a query, the derivation (T + 1) / 2."""
    for name in site("counts").BENCHED:
        assert 0 < site("counts").counted(name)["C'"] / SIZES[name].flops - 1 < 1 / SIZES[name].T


def test_attention_has_half_of_the_operations_at_the_context_that_the_table_says(site):
    for name in site("counts").BENCHED:
        T = round(site("cost").half(site("counts").counted(name)))
        of = site("counts").evaluated(site("counts").letters()[name] | {"T": T})
        assert abs(6 * of["N"] * of["n"] / of["C'"] - 0.5) < 1 / T


def test_what_is_counted_is_most_of_the_measured_peak(site):
    rows = list(site("cost").pieces())
    assert [row[0] for row in rows] == list(site("counts").BENCHED)
    for *_, counted, peak in rows:
        assert 0.5 < site("cost").number(counted) / site("cost").number(peak) < 1


def test_numbers_are_written_as_the_examples_say(site):
    failed, attempted = doctest.testmod(site("cost"))
    assert attempted
    assert not failed


# --- rounding ---------------------------------------------------------------------------------------------------------

def test_sums_keep_their_bound_and_lanes_and_pairs_are_better(site):
    for row in site("rounding").sums():
        _, in_order, in_lanes, in_pairs, bound = map(site("cost").number, row)
        assert in_pairs < in_order <= bound
        assert in_lanes < in_order


@needs_kernels
def test_the_exponential_errs_by_rounding_alone(site):
    """Within the bound of csrc/cpu/real.h, which the degree of its series explains."""
    for _, _, left_out, worst in site("rounding").exponentials():
        assert site("cost").number(left_out) < 0.1
        assert worst == "–" or 0.5 < site("cost").number(worst) <= 1.1


@needs_kernels
def test_the_errors_of_ops_are_those_of_their_kernels(site, monkeypatch):
    worst = site("rounding").worst
    assert worst(OPS["relu"]) == (0, 0)                                                 # it does not round
    assert all(0 < error < 16 for error in worst(OPS["gelu"]))
    right = backend.cpu.gelu

    def gelu(x, **options):
        y, saved = right(x, **options)
        return y * np.float32(1 + 2 ** -10), saved

    monkeypatch.setattr(backend.cpu, "gelu", gelu)
    outputs, gradients = worst(OPS["gelu"])
    assert outputs > 2 ** 12
    assert gradients < 16


# --- the widget -------------------------------------------------------------------------------------------------------

def test_javascript_counts_what_the_derivation_does(site):
    rng = np.random.default_rng(0)
    sizes = [{name: int(rng.integers(1, 50)) for name in "BTDHGKFVL"} | {"E": 1} for _ in range(10)]
    sizes += site("counts").letters().values()
    for letters, counted in zip(sizes, in_javascript([("counting", one) for one in sizes]), strict=True):
        of = site("counts").evaluated(letters)
        expected = {"N": of["N"], "P": of["P"], "C": of["C'"], "S": of["S"], "R": of["S'"], "scores": of["n"] * of["V"],
                    "pairs": of["L"] * of["n"] * of["H"] * of["T"]}
        for name, value in expected.items():
            np.testing.assert_allclose(counted[name], value, rtol=1e-12, err_msg=f"{name} of {letters}")


@pytest.fixture
def opened(browser, site, tmp_path):
    """opened(language): the browser with the widget."""
    widgets = site("widgets")

    def page(language):
        scripts = "".join(f'<script src="{(SITE / "_static" / "widgets" / name).as_uri()}"></script>'
                          for name in widgets.SCRIPTS)
        file = tmp_path / "page.html"
        file.write_text(f'<!doctype html><html lang="{language}"><meta charset="utf-8">{scripts}'
                        f'{widgets.places("counting")}', "utf-8")
        browser.get(file.as_uri())
        return browser
    yield page
    assert browser.get_log("browser") == []


def test_a_button_chooses_a_model_and_a_key_changes_it(opened, site):
    browser = opened("en")
    find = browser.find_elements
    find("xpath", "//button[.='LLaMA 7B']")[0].send_keys(" ")
    assert "N = 6.61 G" in browser.find_element("css selector", ".status").text
    heads = browser.find_element("css selector", '[aria-label="heads H"]')
    heads.send_keys("\ue012")                                                           # the left arrow
    labels = {text[-1]: text for text in (one.get_attribute("aria-label") for one in find("css selector", "input"))}
    now = {name: int(browser.find_element("css selector", f'[aria-label="{label}"]').get_attribute("aria-valuetext")
                     .replace(",", "")) for name, label in labels.items()}
    assert (now["H"], now["G"]) == (16, 16), "keys and values have no more heads than queries"
    of = site("counts").evaluated(now | {"K": now["D"] // now["H"], "E": 1})
    shown = [row.find_elements("css selector", "td")[0].text for row in find("css selector", ".kinds tr")]
    assert shown[3] == f"{of['S'] * 4 / 2 ** 30:.3g} GiB"
    assert shown[0] == shown[1] == f"{of['P'] * 4 / 2 ** 30:.3g} GiB"


def test_the_widget_is_in_chinese_on_a_chinese_page(opened):
    assert "参数" in opened("zh-CN").find_element("css selector", ".kinds").text
    assert "memory" not in opened("zh-CN").find_element("css selector", "body").text
