"""The map of the built site in a headless Chromium, by mouse and by keyboard: `make docs-test`."""
import pytest
from conftest import BUILT, NARROW
from joined import calls, joined

pytest.importorskip("selenium", reason="the extra 'docs' is not installed")
from selenium.webdriver.common.keys import Keys

if not (BUILT / "en" / "map.html").exists():
    pytest.skip("the site is not built: make docs", allow_module_level=True)

LIT = "return [...document.querySelectorAll('.map li.lit')].map((item) => item.id)"
LINES = "return document.querySelectorAll('.map path').length"


@pytest.fixture(params=["en", "zh_CN"])
def page(show, request):
    return show(f"{request.param}/map.html", prefers_reduced_motion="reduce")


def button(browser, key):
    return browser.find_element("id", key).find_element("tag name", "button")


def pressed(browser):
    return [one.text for one in browser.find_elements("css selector", '.map [aria-pressed="true"]')]


def around(name):
    return {f"op-{name}", *(f"{kind}-{other}" for kind, others in joined(name).items() for other in others)}


def test_nothing_is_lit_at_first(page):
    assert (pressed(page), page.execute_script(LIT), page.execute_script(LINES)) == ([], [], 0)


def test_a_click_on_an_op_lights_what_is_joined_with_it_alone_and_another_click_nothing(page):
    button(page, "op-softmax").click()
    assert pressed(page) == ["softmax"]
    assert set(page.execute_script(LIT)) == around("softmax")
    assert page.execute_script(LINES) == len(around("softmax")) - 1
    button(page, "op-softmax").click()
    assert (pressed(page), page.execute_script(LIT), page.execute_script(LINES)) == ([], [], 0)


def test_the_keyboard_chooses_an_op_instead_of_another_and_escape_leaves_it(page):
    button(page, "op-softmax").send_keys(Keys.ENTER)
    button(page, "op-rope").send_keys(Keys.SPACE)
    assert pressed(page) == ["rope"]
    assert set(page.execute_script(LIT)) == around("rope")
    button(page, "op-rope").send_keys(Keys.ESCAPE)
    assert (pressed(page), page.execute_script(LIT)) == ([], [])


@pytest.mark.parametrize("family", ["llama", "lstm"])
def test_a_model_lights_the_ops_that_it_calls(page, family):
    button(page, f"model-{family}").click()
    assert set(page.execute_script(LIT)) == {f"model-{family}", *(f"op-{name}" for name in calls(family))}


def test_a_test_lights_the_ops_that_it_checks(page):
    button(page, "test-test_lstm.py").click()
    assert set(page.execute_script(LIT)) == {"test-test_lstm.py", "op-lstm_cell", "op-linear"}


def test_the_status_counts_and_links_to_the_page(page):
    button(page, "op-attention").click()
    status = page.find_element("css selector", '[role="status"]')
    for others in joined("attention").values():
        assert str(len(others)) in status.text
    assert status.find_element("tag name", "a").get_attribute("href").endswith("/ops/attention.html")


def test_each_line_ends_at_what_it_joins(page):
    button(page, "op-rms_norm").click()
    ends = page.execute_script("""
        const box = document.querySelector(".map").getBoundingClientRect();
        const paths = [...document.querySelectorAll(".map path")];
        const ends = paths.map((path) => path.getPointAtLength(path.getTotalLength()));
        return ends.map(({ x, y }) => [x + box.left, y + box.top])""")
    items = [page.find_element("id", key) for key in around("rms_norm") if key != "op-rms_norm"]
    wanted = page.execute_script("""return arguments[0].map((item) => {
        const { left, top, bottom } = item.getBoundingClientRect();
        return [left, (top + bottom) / 2];
    })""", items)
    assert sorted([round(x), round(y)] for x, y in ends) == sorted([round(x), round(y)] for x, y in wanted)


def test_a_narrow_page_has_no_lines_and_its_columns_stand_below_each_other(show):
    browser = show("en/map.html", NARROW)
    button(browser, "op-softmax").click()
    assert not browser.find_element("css selector", ".map > svg").is_displayed()
    columns = [column.rect for column in browser.find_elements("css selector", ".map .column")]
    assert len({column["x"] for column in columns}) == 1
