"""The built site in a headless Chromium: `make docs-test`.

Each page of both languages is opened from the disk, as a reader does who has no server.
"""
import json
from html.parser import HTMLParser

import pytest

pytest.importorskip("selenium", reason="the extra 'docs' is not installed")
from conftest import BUILT, NARROW, ROOT, WIDE
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

AXE = ROOT / "build" / "node_modules" / "axe-core" / "axe.min.js"
LANGUAGES = {"en": "en", "zh_CN": "zh-CN"}
PAGES = [path.relative_to(BUILT / "en").as_posix() for path in sorted((BUILT / "en").rglob("*.html"))]
FOUND = {"en": "softmax", "zh_CN": "归一化"}
SECONDS = 20

if not PAGES:
    pytest.skip("the site is not built: make docs", allow_module_level=True)

every_page = pytest.mark.parametrize("page", [f"{language}/{page}" for language in LANGUAGES for page in PAGES])
both_languages = pytest.mark.parametrize("language", LANGUAGES)


def style(element, name):
    return element.value_of_css_property(name)


def background(browser):
    return style(browser.find_element(By.CSS_SELECTOR, "body"), "background-color")


class Links(HTMLParser):
    """The addresses and the ids of a page."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        self.targets += [given[name] for name in ("href", "src") if given.get(name)]


# --- every page -------------------------------------------------------------------------------------------------------

@every_page
def test_a_page_loads_without_errors_in_its_language(show, page):
    browser = show(page)
    assert browser.get_log("browser") == []
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == LANGUAGES[page.partition("/")[0]]


@every_page
def test_every_link_within_the_site_leads_somewhere(page):
    path = BUILT / page
    for link in Links(path).targets:
        file, _, anchor = link.partition("#")
        if "://" in file or link.startswith(("data:", "#svg")) or link == "#":
            continue
        target = (path.parent / file.partition("?")[0]).resolve() if file else path
        assert target.is_file(), link
        assert not anchor or anchor in Links(target).ids, link


@every_page
def test_the_switch_keeps_the_page(page):
    language, _, name = page.partition("/")
    other, = LANGUAGES.keys() - {language}
    if name != "search.html":
        assert (BUILT / other / name).resolve() in {(BUILT / page).parent.joinpath(link).resolve()
                                                    for link in Links(BUILT / page).targets}


@every_page
def test_a_narrow_page_does_not_scroll_sideways(show, page):
    browser = show(page, NARROW)
    page = browser.find_element(By.TAG_NAME, "html")
    assert page.get_property("scrollWidth") <= page.get_property("clientWidth")


@every_page
@pytest.mark.parametrize(("size", "scheme"), [(NARROW, "light"), (WIDE, "dark")], ids=["narrow-light", "wide-dark"])
def test_axe_finds_no_violation(show, page, scheme, size):
    if not AXE.exists():
        pytest.skip("needs axe-core: npm install --prefix build axe-core")
    browser = show(page, size, prefers_color_scheme=scheme)
    browser.execute_script(AXE.read_text("utf-8"))
    result = browser.execute_async_script("axe.run().then(arguments[0])")
    found = [(rule["id"], [node["html"][:200] for node in rule["nodes"][:3]]) for rule in result["violations"]]
    assert found == [], json.dumps(found, indent=1, ensure_ascii=False)


# --- what a page does -------------------------------------------------------------------------------------------------

def lit(browser):
    return [line.text.strip() for line in browser.find_elements(By.CSS_SELECTOR, "pre.opcode .lit")]


@both_languages
def test_a_step_lights_its_line_of_code_under_the_mouse_and_at_the_focus(show, language):
    browser = show(f"{language}/ops/rms_norm.html")
    last = browser.find_elements(By.CSS_SELECTOR, ".step")[-1]
    wanted = ["dw = np.sum(dy * n, axis=tuple(range(dy.ndim - 1)))"]
    assert lit(browser) == []
    webdriver.ActionChains(browser).move_to_element(last).perform()
    assert lit(browser) == wanted
    webdriver.ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert lit(browser) == []
    browser.execute_script("arguments[0].focus()", last.find_element(By.CSS_SELECTOR, "a.number"))
    assert lit(browser) == wanted


def test_the_lit_line_is_in_sight_in_long_code(show):
    browser = show("en/ops/attention.html")
    step = [step for step in browser.find_elements(By.CSS_SELECTOR, ".step")
            if step.find_element(By.CSS_SELECTOR, ".equation").get_attribute("data-lines")][-1]
    webdriver.ActionChains(browser).move_to_element(step).perform()
    line = browser.find_element(By.CSS_SELECTOR, "pre.opcode .lit").rect
    top = browser.execute_script("return window.scrollY")
    assert top <= line["y"] < top + WIDE[1]


def test_a_link_leads_to_a_step(show):
    browser = show("en/ops/rms_norm.html#step-9")
    step = browser.find_element(By.CSS_SELECTOR, ":target")
    assert step.find_element(By.CSS_SELECTOR, "a.number").text == "9"


@both_languages
def test_the_answer_of_an_exercise_is_folded(show, language):
    browser = show(f"{language}/ops/softmax.html")
    answer = browser.find_element(By.CSS_SELECTOR, "details p")
    assert not answer.is_displayed()
    answer.find_element(By.XPATH, "ancestor::details/summary").send_keys(Keys.ENTER)
    assert answer.is_displayed()


@both_languages
def test_the_search_finds_a_page(show, language):
    browser = show(f"{language}/search.html?q={FOUND[language]}")
    wait = WebDriverWait(browser, SECONDS)
    found = wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#search-results ul.search li a"))
    assert any("ops/" in link.get_attribute("href") for link in found)


@both_languages
def test_dark_mode_is_dark(show, language):
    page = f"{language}/ops/softmax.html"
    assert background(show(page, prefers_color_scheme="light")) != background(show(page, prefers_color_scheme="dark"))


def test_nothing_moves_for_readers_who_asked_for_that(show):
    moving = ("return [...document.querySelectorAll('*')].map(e => getComputedStyle(e))"
              ".filter(s => parseFloat(s.transitionDuration) > 0 || s.scrollBehavior == 'smooth').length")
    assert show("en/ops/softmax.html", prefers_reduced_motion="no-preference").execute_script(moving) > 0
    assert show("en/ops/softmax.html", prefers_reduced_motion="reduce").execute_script(moving) == 0


def test_an_op_without_steps_says_so():
    derived = {path.stem for path in (ROOT / "pyllama" / "study" / "derivations").glob("*.py")}
    for path in (BUILT / "en" / "ops").glob("*.html"):
        assert ("not derived step by step" in path.read_text("utf-8")) == (path.stem not in derived), path
