"""The pytest plugin beside other options and plugins of pytest; its page; runs that do not use it."""
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.plugin_runs import HEAD, ONCE, ROOT, TWICE, run, run_subprocess, summary

pytest_plugins = ["pytester"]


# --- other options of pytest ------------------------------------------------------------------------------------------

def test_failures_first_and_last_failed_and_names(pytester):
    run(pytester, TWICE + ONCE, "-x").assert_outcomes(failed=1)
    run(pytester, TWICE + ONCE).assert_outcomes(failed=1, passed=1)
    result = run(pytester, TWICE + ONCE, "--lf")
    result.assert_outcomes(failed=1)
    run(pytester, TWICE + ONCE, "-k", "once").assert_outcomes(passed=1, deselected=1)


def test_the_workers_of_xdist_share_the_seed_and_the_report(pytester, monkeypatch):
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=HEAD + TWICE + ONCE)
    pytester.makepyfile(test_other=HEAD + TWICE)
    result = run_subprocess(pytester, monkeypatch, "-n", "2", "--gradcheck-report=report.html")
    result.assert_outcomes(passed=1, failed=2)
    tests, examples, seed = summary(result)
    assert tests == 3
    assert examples >= 7
    replays = [line for line in result.outlines if line.startswith("pytest test_")]
    assert len(replays) == 2
    assert all(f"--gradcheck-seed={seed} " in line for line in replays)
    assert (pytester.path / "report.html").read_text("utf-8").count('<tr class="failed">') == 2

# --- the page ---------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """The tags and the texts of cells; open tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells, self.attributes = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        if tag != "meta":
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "td" in self.open:
            self.cells[-1] += text


def test_the_report_is_one_page_with_a_row_for_each_test(pytester):
    result = run(pytester, ONCE + """
@pytest.mark.parametrize("k", ["<b>"])
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_wrong(x, k):
    return 1 * x, lambda dy: 2 * dy
""", "--gradcheck-report=pages/report.html")
    result.stdout.fnmatch_lines(["gradcheck: report in pages/report.html"])
    page = Page((pytester.path / "pages/report.html").read_text("utf-8"))
    assert "script" not in page.tags
    assert not {"src", "href"} & {*page.attributes}
    wrong, right = page.cells[:6], page.cells[7:]
    assert wrong[:2] == ["test_it.py::test_wrong[<b>]", "failed"]
    assert float(wrong[2]) > 1
    assert page.cells[6].endswith("--gradcheck-seed=0 --gradcheck-examples=25")
    assert right[:2] == ["test_it.py::test_once", "passed"]
    assert float(right[2]) < 1
    assert (right[3], right[5]) == ("5", "0")


def test_a_report_that_cannot_be_written_is_said(pytester):
    pytester.makefile(".txt", file="")
    result = run(pytester, ONCE, "--gradcheck-report=file.txt/report.html")
    result.stdout.fnmatch_lines(["gradcheck: no report is written: *"])

# --- runs that do not use it ------------------------------------------------------------------------------------------

def test_importing_the_plugin_imports_nothing_heavy():
    code = "import sys, pytest; before = {*sys.modules}; import pyllama.testing.plugin; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded <= {"pyllama"} | {*sys.stdlib_module_names}
    assert {name for name in done.stdout.split() if name.startswith("pyllama")} == {
        "pyllama", "pyllama.testing", "pyllama.testing.plugin"}


def test_a_run_without_marked_tests_prints_and_imports_nothing(pytester, monkeypatch):
    pytester.makepyfile("""
        import sys

        def test_it():
            assert not {"numpy", "hypothesis"} & {*sys.modules}
    """)
    result = run_subprocess(pytester, monkeypatch, "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)
    assert "gradcheck" not in result.stdout.str()


@pytest.mark.parametrize("arguments", [[], ["-p", "pyllama.testing.plugin"]])
def test_the_entry_point_loads_the_plugin_once(pytester, monkeypatch, arguments):
    """An installed package, as pytest sees it: its metadata beside its modules."""
    installed = pytester.mkdir("installed")
    metadata = installed / "pyllama_reference-9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: pyllama-reference\nVersion: 9\n", "utf-8")
    line, = re.findall(r'^"(pyllama.*)" = "(pyllama.*?)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    (metadata / "entry_points.txt").write_text("[pytest11]\n{} = {}\n".format(*line), "utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{installed}:{ROOT}")
    pytester.makepyfile(test_it=HEAD + ONCE)
    result = pytester.runpytest_subprocess(*arguments, "--strict-markers", "-W", "error")
    result.assert_outcomes(passed=1)
