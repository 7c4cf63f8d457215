"""The page of the backward explorer in a browser: a walk along the chain rule shows the numbers of the recording."""
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pyllama.study.explain import page
from tests.explained import SENTENCE, Models, made, small_run

AXE = Path(__file__).parents[1] / "build/node_modules/axe-core/axe.min.js"
# One page for each kind of head, among them all parts that a page may have
CASES = [("text", "llama"), ("classify", "mbart"), ("tag", "lstm"), ("qa", "distilbert"), ("g2p", "transformer"),
         ("regress", "bert")]
every_case = pytest.mark.parametrize("case", CASES, ids="-".join)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def of_run(run, tmp_path_factory):
    """(the file of the page, the recording)"""
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_bytes(page.explained(run, SENTENCE))
    return file, made(run)[1]


@pytest.fixture
def opened(browser, of_run):
    """(browser, recording) with the page of the run open."""
    file, recording = of_run
    browser.get(file.as_uri())
    yield browser, recording
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory)


@pytest.fixture(scope="module")
def pages(models, tmp_path_factory):
    """The file of each case's page, with few nudges."""
    made_in = tmp_path_factory.mktemp("pages")
    for case in CASES:
        folder, given, _ = models.folder(case)
        written = page.html(page.as_json(made(folder, given, 16)[2]))
        (made_in / "-".join(case)).with_suffix(".html").write_bytes(written)
    return made_in


@pytest.fixture
def shown(browser, pages, case):
    """(browser, document) with the page of the case open."""
    browser.get((pages / "-".join(case)).with_suffix(".html").as_uri())
    yield browser, browser.execute_script("return data")
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


def test_every_word_has_both_languages(opened):
    """A text with an English word is another one in Chinese, with a Chinese character; symbols are the same."""
    browser, _ = opened
    words = browser.execute_script("""
        const model = { name: "", type: "", task: "", parameters: 1, step: 1, dtype: "" };
        const say = (text) => typeof text !== "function" ? text
          : text.length === 2 && text(model, String) || text(...[3, 3, 3, 3].slice(0, text.length));
        const about = (of) => of.about(model, String);
        return ["en", "zh"].map((language) => Object.fromEntries(Object.entries(WORDS[language]).map(([key, text]) =>
          [key, key === "about" ? about(WORDS[language]) : say(text)])));""")
    english, chinese = words
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        other = chinese[key]
        if key != "other" and re.search("[A-Za-z]{4}", text.replace("loss", "")):
            assert re.search("[\u4e00-\u9fff]", other), (key, other)
    assert (english["other"], chinese["other"]) == ("中文", "English")
    folder = Path(page.__file__).parent
    program = "\n".join(folder.joinpath(name).read_text("utf-8") for name in (*page.SCRIPTS, "page.html"))
    assert {*re.findall(r'word\("([\w ]+)"', program), *re.findall(r'data-word="(\w+)"', program)} <= english.keys()


@every_case
def test_a_page_says_everything_in_both_languages(shown):
    browser, document = shown
    first = {}                                              # of each op the first call
    for i, call in enumerate(document["calls"]):
        first.setdefault(call["op"], i)
    for language in "en", "zh-CN":
        assert browser.find_element("tag name", "html").get_attribute("lang") == language
        said = browser.execute_script("""
            const said = [], heard = (part) => said.push(part.textContent);
            for (const step of [0, 1, calls.length, calls.length + 1, total]) {
              moveTo(step);
              heard(document.querySelector("header"));
              heard(document.querySelector("main"));
            }
            for (const call of arguments[0])
              arraysOf(call).forEach((_, array) => {
                goTo(call, array);
                choose($("inspector").querySelector("td[data-cell]"));
                heard($("inspector"));
              });
            return said;""", list(first.values()))
        assert not [text for text in said if re.search("undefined|NaN|null", text)]
        browser.find_element("id", "language").click()


@every_case
def test_a_page_has_the_parts_of_its_model(shown, case):
    browser, document = shown
    loss = {"text": "Loss per token", "classify": "Loss of the label", "tag": "Loss per tag",
            "qa": "Loss of the span", "g2p": "Loss per token", "regress": "Loss of the number"}[case[0]]
    headings = [one.text for one in browser.find_elements("css selector", "h2") if one.text]
    assert loss in headings
    assert ("The LSTM through time" in headings) == (case[1] == "lstm")
    options = [one.text for one in browser.find_elements("css selector", "#attention option")]
    kinds = {text.split(" · ")[0] for text in options if " · " in text}
    assert kinds == ({"encoder", "decoder", "cross-attention"} if case[1] in ("mbart", "transformer") else set())
    assert len(options) == len(document["attention"])
    if document["classes"]:
        shown = browser.find_element("id", "losses").text
        assert all(name.split()[-1] in shown for name in document["classes"]["columns"])


@pytest.mark.parametrize("case", [("tag", "lstm")])
def test_a_weight_that_every_step_uses_shows_the_products_of_all_steps(shown):
    """Its gradient is the sum of dy · h over the steps, each of which is a product."""
    browser, document = shown
    browser.execute_script("moveTo(total)")
    browser.find_element("css selector", "#time tbody tr:nth-child(3) td:nth-child(8) button").click()
    browser.find_element("css selector", "#inspector td[data-cell='9']").click()       # 8 columns
    text = browser.find_element("id", "detail").text
    assert "Several calls use this weight." in text
    parts = re.findall(r"^\d+ linear (\S+)(?: = (\S+) · (\S+))?$", text, re.MULTILINE)
    assert len(parts) == len(document["time"][0]["steps"])
    for part, left, right in parts:
        assert not left or number(part) == pytest.approx(number(left) * number(right), rel=1e-4)
    total = number(re.search(r"∂loss/∂lstm.weight_hh_l0\[\d+,1\] = (\S+)", text)[1])
    assert total == pytest.approx(sum(number(part) for part, *_ in parts), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("case", CASES[:1])
def test_the_keyboard_plays_pauses_and_steps(shown):
    from selenium.webdriver.common.keys import Keys
    browser, _ = shown
    browser.execute_script("$('play').focus()")
    press(browser, Keys.ENTER)
    assert browser.execute_script("return state.timer") is not None
    assert browser.find_element("id", "play").text == "pause"
    press(browser, Keys.SPACE)
    assert browser.execute_script("return state.timer") is None
    press(browser, Keys.END)
    assert browser.execute_script("return state.step === total")
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert browser.execute_script("return total - state.step") == 1
    press(browser, Keys.HOME)
    assert browser.execute_script("return state.step") == 0


@every_case
@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1500)])
def test_axe_finds_no_violation_and_a_page_does_not_scroll_sideways(shown, scheme, width):
    browser, _ = shown
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        browser.execute_script("moveTo(total); choose($('inspector').querySelector('td[data-cell]'))")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        if not AXE.exists():
            pytest.skip("needs axe-core: npm install --prefix build axe-core")
        browser.execute_script(AXE.read_text("utf-8"))
        result = browser.execute_async_script("axe.run().then(arguments[0])")
        found = [(rule["id"], [node["html"][:200] for node in rule["nodes"][:3]]) for rule in result["violations"]]
        assert found == [], json.dumps(found, indent=1)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
