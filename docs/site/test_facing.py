"""The two facing passes of the built site in a headless Chromium: `make docs-test`."""
import derived
import pytest
from conftest import BUILT, NARROW, WIDE
from passes import passes

pytest.importorskip("selenium", reason="the extra 'docs' is not installed")
from selenium.webdriver import ActionChains

if not (BUILT / "en" / "block.html").exists():
    pytest.skip("the site is not built: make docs", allow_module_level=True)

LIT = "return [...document.querySelectorAll('.passes .lit')].map((line) => line.id)"
BOTH = passes(derived.of("llama_block")[0])


@pytest.fixture(params=["en", "zh_CN"])
def page(show, request):
    return show(f"{request.param}/block.html", prefers_reduced_motion="reduce")


def ids(lines):
    return [f"line-{line.number}" for line in lines]


def test_a_forward_line_under_the_mouse_lights_the_backward_lines_that_need_its_value(page):
    line, = (line for line in BOTH.forward if line.defines == "n")
    ActionChains(page).move_to_element(page.find_element("id", f"line-{line.number}")).perform()
    assert sorted(page.execute_script(LIT)) == ids(BOTH.again("n"))
    ActionChains(page).move_to_element(page.find_element("tag name", "h1")).perform()
    assert page.execute_script(LIT) == []


def test_a_backward_line_with_the_focus_lights_the_forward_lines_whose_values_it_needs(page):
    line, = (line for line in BOTH.backward if line.defines == "dx'")
    page.execute_script("arguments[0].focus()", page.find_element("css selector", f"#line-{line.number} a.number"))
    assert page.execute_script(LIT) == ids(before for before in BOTH.forward if before.defines in ("ρ'", "m'"))


def test_a_number_leads_to_its_step(page):
    for link in page.find_elements("css selector", ".passes a.number"):
        assert link.get_attribute("href").endswith(f"/derivations/llama_block.html#step-{link.text.split()[-1]}")


@pytest.mark.parametrize(("size", "facing"), [(WIDE, True), (NARROW, False)], ids=["wide", "narrow"])
def test_backward_lines_stand_beside_their_forward_line_or_below_it(show, size, facing):
    rows = show("en/block.html", size).find_elements("css selector", ".passes > .facing:not(.directions)")
    assert len(rows) == len(BOTH.forward)
    for row in rows:
        left, right = (row.find_element("css selector", name).rect for name in (".forward", ".backward"))
        assert (right["x"] > left["x"] + left["width"]) == facing
        assert (right["y"] == left["y"]) == facing
