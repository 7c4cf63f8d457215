"""A headless Chromium that opens pages of the built site from the disk."""
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "_ext"))       # the tests import what the build does

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "site"
SECONDS = 20
NARROW, WIDE = (360, 780), (1500, 1000)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="the extra 'docs' is not installed")
    chromedriver = shutil.which("chromedriver")
    if chromedriver is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ["--headless=new", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser):
    """show(page, size, **features): the browser with this page, as a reader with these media features sees it."""
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(page, size=WIDE, **features):
        width, height = size
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})
        browser.get(f"{BUILT.as_uri()}/{page}")
        loaded = "return document.readyState === 'complete'"             # on a busy machine get() may return before
        WebDriverWait(browser, SECONDS).until(lambda browser: browser.execute_script(loaded))
        return browser
    return shown
