"""A bug that the reader plants, in a headless Chromium: `make docs-test`."""
import pytest

pytest.importorskip("selenium", reason="the extra 'docs' is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

FAILS = {"en": "fails", "zh_CN": "不成立"}
both_languages = pytest.mark.parametrize("language", FAILS)


def bug(browser, text):
    """The bug whose patch has this text."""
    bugs = browser.find_elements(By.CSS_SELECTOR, ".bug")
    patches = [bug.find_element(By.CSS_SELECTOR, "pre.patch").get_property("textContent") for bug in bugs]
    assert sum(text in patch for patch in patches) == 1, patches
    return next(bug for bug, patch in zip(bugs, patches, strict=True) if text in patch)


def button(bug):
    return bug.find_element(By.CSS_SELECTOR, "button.plant")


def press(bug):
    """By the keyboard, which needs no sight of the button."""
    button(bug).send_keys(Keys.ENTER)


def broken(browser):
    return [step.get_attribute("id") for step in browser.find_elements(By.CSS_SELECTOR, ".step.broken")]


def code(browser):
    return browser.find_element(By.CSS_SELECTOR, "pre.opcode").text


def page(browser):
    return browser.execute_script("return document.querySelector('article').outerHTML")


@both_languages
def test_a_planted_bug_stands_in_the_code_and_fails_the_step_of_its_line(show, language):
    browser = show(f"{language}/ops/rms_norm.html")
    planted, before = bug(browser, "np.sum(dx * n"), code(browser)
    assert not planted.find_element(By.CSS_SELECTOR, ".complaint").is_displayed()
    press(planted)
    assert code(browser) == before.replace("dw = np.sum(dy * n,", "dw = np.sum(dx * n,")
    assert broken(browser) == ["step-10"]
    failure = browser.find_element(By.CSS_SELECTOR, "#step-10 .failure")
    assert failure.find_element(By.CSS_SELECTOR, ".badge").text.endswith(FAILS[language])
    entry, right, wrong = (part.text for part in failure.find_elements(By.TAG_NAME, "code"))
    assert entry.startswith("dw[")
    assert float(right) != float(wrong)
    assert not browser.find_element(By.CSS_SELECTOR, "#step-10 > .badge").is_displayed()
    assert planted.find_element(By.CSS_SELECTOR, ".complaint").is_displayed()
    assert button(planted).get_attribute("aria-pressed") == "true"


@both_languages
def test_a_bug_that_is_taken_out_leaves_the_page_as_it_was(show, language):
    browser = show(f"{language}/ops/rms_norm.html")
    before = page(browser)
    for planted in browser.find_elements(By.CSS_SELECTOR, ".bug"):
        press(planted)
        assert page(browser) != before
        press(planted)
        assert page(browser) == before


def test_a_bug_takes_the_place_of_the_one_before(show):
    browser = show("en/ops/rms_norm.html")
    first, second = bug(browser, "np.sum(dx * n"), bug(browser, "n * r * np.mean")
    press(first)
    press(second)
    assert broken(browser) == ["step-9"]
    assert [button(one).get_attribute("aria-pressed") for one in (first, second)] == ["false", "true"]
    assert "dx * n" not in code(browser)


def test_a_bug_that_the_numbers_do_not_show_fails_no_step(show):
    browser = show("en/ops/rms_norm.html")
    planted = bug(browser, "x.flags.c_contiguous")
    press(planted)
    assert "x.flags.c_contiguous" in code(browser)
    assert broken(browser) == []
    assert "do not show this bug" in planted.find_element(By.CSS_SELECTOR, ".outcome").text


def test_a_step_still_lights_its_lines_beside_a_bug(show):
    browser = show("en/ops/rms_norm.html")
    press(bug(browser, "x.flags.c_contiguous"))                     # three lines in the place of one above those
    browser.execute_script("arguments[0].focus()", browser.find_element(By.CSS_SELECTOR, "#step-10 a.number"))
    lit = [line.text.strip() for line in browser.find_elements(By.CSS_SELECTOR, "pre.opcode .lit")]
    assert lit == ["dw = np.sum(dy * n, axis=tuple(range(dy.ndim - 1)))"]


def test_without_a_script_the_patch_and_the_verdict_are_there(browser, show):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show("en/ops/rms_norm.html")
        planted = browser.find_element(By.CSS_SELECTOR, ".bug")
        assert planted.find_element(By.CSS_SELECTOR, "pre.patch").is_displayed()
        assert planted.find_element(By.CSS_SELECTOR, ".complaint").is_displayed()
        assert not button(planted).is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@both_languages
def test_every_planted_bug_of_every_op_can_be_taken_out(show, language):
    from pyllama.testing.catalogue import bugs

    for name in dict.fromkeys(bug.op for bug in bugs()):
        browser = show(f"{language}/ops/{name}.html")
        before = page(browser)
        for planted in browser.find_elements(By.CSS_SELECTOR, ".bug"):
            press(planted)
            assert browser.find_elements(By.CSS_SELECTOR, "pre.opcode .grown"), name
            press(planted)
        assert page(browser) == before
        assert browser.get_log("browser") == []
