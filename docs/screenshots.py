"""The README's screenshots, as WebP: a step of the demo in the backward explorer, and an op's page of the site.

    python docs/screenshots.py runs/demo build/site docs/pictures      what `make screenshots` runs after demo and site
"""
import base64
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver

from pyllama.study.explain.page import explained

WIDTH, SCALE, QUALITY = 1000, 1.6, 50           # CSS pixels, device pixels in each, and WebP's quality up to 100
TEXT = "The for statement is used to iterate"

# Halfway through the backward pass, the largest gradient of a matrix with its local products
EXPLORER = """
const style = document.createElement("style");
style.textContent = `#h-graph, #h-graph + p { display: none; } #inspector .scroll { max-height: 15rem; }
  ::-webkit-scrollbar { display: none; }`;
document.head.append(style);
const call = calls.findIndex((one) => one.parameter?.endsWith("layers.1.mlp.down_proj.weight"));
moveTo(backAt.get(call) + 1);
goTo(call, 1);
const sizes = arraysOf(call)[1].gradients.map(Math.abs);
const cell = $("inspector").querySelector(`[data-cell="${sizes.indexOf(Math.max(...sizes))}"]`);
choose(cell);
cell.scrollIntoView({ block: "center", inline: "center" });
scrollTo(0, 0);
"""
# The page without what surrounds it, from the sixth step on; the ninth lights its line of code
SITE = """
const style = document.createElement("style");
style.textContent = `html { scroll-behavior: auto !important; font-size: 107%; }
  .sidebar-drawer, .toc-drawer, .mobile-header, .content-icon-container, .back-to-top { display: none !important; }
  .content { width: auto !important; max-width: none; padding: 0 1.5rem !important; } :focus { outline: none; }
  ::-webkit-scrollbar { display: none; }`;
document.head.append(style);
const steps = document.querySelectorAll(".step");
steps[8].querySelector("a.number").focus({ preventScroll: true });
steps[5].scrollIntoView();
scrollBy(0, 48);
"""


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium, which ends with the block."""
    options = webdriver.ChromeOptions()
    for flag in ["--headless=new", "--disable-gpu", "--lang=en", *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def picture(driver: webdriver.Chrome, page: Path, script: str, width: int, height: int) -> bytes:
    """What a window of this size shows of a page, after a script has run there, as WebP."""
    size = {"width": width, "height": height, "deviceScaleFactor": SCALE * WIDTH / width, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.resolve().as_uri())
    driver.execute_script(script)
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})
    return base64.b64decode(taken["data"])


def main(run: Path, site: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with browser() as driver, tempfile.TemporaryDirectory() as scratch:
        step = Path(scratch, "step.html")
        step.write_bytes(explained(run, TEXT))
        pictures = {"explain": picture(driver, step, EXPLORER, WIDTH, 860),
                    "rms_norm": picture(driver, site / "en/ops/rms_norm.html", SITE, 1200, 680)}
    for name, taken in pictures.items():
        out = folder / f"{name}.webp"
        out.write_bytes(taken)
        print(f"wrote {out} ({len(taken) / 1000:.0f} kB)")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
