"""The page of the backward explorer in a browser: a walk along the chain rule shows the numbers of the recording."""
import re

import numpy as np
import pytest

from pyllama.study.explain import page
from tests.explained import SENTENCE, made, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def opened(browser, run, tmp_path):
    """(browser, recording) with the page of the run open."""
    file = tmp_path / "page.html"
    file.write_bytes(page.explained(run, SENTENCE))
    browser.get(file.as_uri())
    yield browser, made(run)[1]
    assert browser.get_log("browser") == []


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains
    ActionChains(browser).send_keys(*keys).perform()


def shown_norms(browser, kind):
    script = f"return [...document.querySelectorAll('.node .{kind}')].map((text) => text.textContent.split(' ')[1])"
    return browser.execute_script(script)


def number(text):
    return float(text.replace("−", "-"))


def test_a_walk_from_the_loss_to_the_embedding_shows_the_right_numbers(opened):
    from selenium.webdriver.common.keys import Keys
    browser, recording = opened
    assert set(shown_norms(browser, "size")) == {"–"}
    browser.find_element("id", "loss").click()
    known = shown_norms(browser, "size")
    np.testing.assert_allclose([number(text.rstrip(",")) for text in known],
                               [np.linalg.norm(call.outputs[0]) for call in recording.calls], rtol=6e-3)
    loss = recording.order[0]
    for i, call in enumerate(recording.order):
        done = {loss, *recording.order[:i]}
        waiting = [dy for other, dy in enumerate(shown_norms(browser, "gradient-size"))
                   if other not in done and not {s.call for s in recording.calls[other].dy_reads[-1]} <= done]
        assert set(waiting) <= {"–"}
        press(browser, Keys.ARROW_RIGHT)
        assert browser.execute_script("return state.call") == call
        gradient = next(grad for grad in recording.calls[call].grads if grad is not None)
        texts = browser.find_elements("css selector", "#inspector td[data-cell]")
        np.testing.assert_allclose([number(text.text) for text in texts], np.ravel(gradient), rtol=6e-3)
    assert recording.calls[call].op.name == "embedding"
    press(browser, Keys.ARROW_LEFT)
    assert shown_norms(browser, "gradient-size")[call] != "–"         # its dy is complete, its own gradient is not


def test_a_cell_shows_its_gradient_and_the_products_that_it_is_the_sum_of(opened):
    browser, recording = opened
    browser.find_element("id", "last").click()
    for number_of_call, call in enumerate(recording.calls):
        browser.execute_script(f"goTo({number_of_call}, 0); state.shows = 'gradients'; drawInspector()")
        gradient = call.grads[0]
        if gradient is None:
            continue
        browser.find_element("css selector", "td[data-cell='5']").click()
        lines = browser.find_element("id", "detail").text.splitlines()
        assert number(lines[0].split(" = ")[1]) == pytest.approx(np.ravel(call.inputs[0])[5], rel=1e-5)
        assert number(lines[1].split(" = ")[1]) == pytest.approx(np.ravel(gradient)[5], rel=1e-5)
        added = [len(recording.calls[source.call].dy_reads[source.place]) for source in call.reads[0]]
        assert any(line.startswith("This is the part ") for line in lines) == any(count > 1 for count in added)
        listed = [line for line in lines if " · " in line]
        values = [[number(x) for x in re.findall(r"(?<= )[−+][\d.e−-]+|(?<= )0", line)] for line in listed]
        assert all(left * right == pytest.approx(product, rel=2e-4) for left, right, product in values)
        rest = [number(line.split(": ")[1]) for line in lines if line.startswith("The other ")]
        total = sum(product for *_, product in values) + sum(rest)
        assert total == pytest.approx(np.ravel(gradient)[5], abs=1e-4 * sum(abs(value[2]) for value in values))


def test_the_edges_lead_from_every_call_to_those_that_read_it(opened):
    """A residual sum that several calls read is one edge from the first of them."""
    browser, recording = opened
    before = {i: {i} for i, _ in enumerate(recording.calls)}
    edges = browser.execute_script("return edges")
    for start, end in sorted(edges, key=lambda edge: edge[1]):
        before[end] |= before[start]
    for i, call in enumerate(recording.calls):
        assert {source.call for sources in call.reads for source in sources if source.kind == "output"} <= before[i]
    assert len(edges) == len({tuple(edge) for edge in edges})


def test_the_keyboard_moves_in_a_table_and_picks_a_cell(opened):
    from selenium.webdriver.common.keys import Keys
    browser, recording = opened
    browser.find_element("id", "last").click()
    browser.execute_script("goTo(2, 1); document.querySelector('td[data-cell]').focus()")
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
    assert browser.execute_script("return state.step") == 2 * len(recording.calls)          # no step was taken
    line = browser.find_element("id", "detail").text.splitlines()[0]
    assert line.startswith("w[1,1] = ")
    assert number(line.split(" = ")[1]) == pytest.approx(recording.calls[2].inputs[1][1, 1], rel=1e-5)


def test_the_slider_chooses_an_epsilon_and_keeps_the_focus(opened):
    from selenium.webdriver.common.keys import Keys
    browser, _ = opened
    slider = browser.find_element("css selector", "#nudge input")
    slider.click()
    press(browser, Keys.HOME, Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == slider
    chosen = browser.find_element("css selector", "#nudge tr.chosen").text.split()
    one = browser.execute_script("return data.nudges[0]")
    assert number(chosen[0]) == pytest.approx(one["epsilons"][1], rel=1e-3)
    assert number(chosen[1]) == pytest.approx(one["losses"][1], abs=1e-9)
    assert number(chosen[2]) == pytest.approx(one["losses"][2] + one["epsilons"][1] * one["gradient"], abs=1e-9)


def test_both_languages_have_all_words_and_the_page_switches(opened):
    browser, _ = opened
    keys = browser.execute_script("return [Object.keys(WORDS.en), Object.keys(WORDS.zh)]")
    assert keys[0] == keys[1]
    browser.find_element("id", "language").click()
    assert browser.find_element("tag name", "html").get_attribute("lang") == "zh-CN"
    assert browser.find_element("css selector", "h1").text == "一步训练，逐格解释"
    browser.find_element("id", "language").click()
    assert "undefined" not in browser.find_element("tag name", "body").text


def test_a_narrow_page_does_not_scroll_sideways(opened):
    browser, _ = opened
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("moveTo(total); return document.documentElement.scrollWidth") <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
