"""How long a page of the site takes to its first paint, from the disk: `python -m bench.first_paint` after `make docs`.

Each page is opened in a new headless Chromium's tab without a cache.  Prints the median and the slowest pages.
"""
import os
import shutil
import statistics
from pathlib import Path

from selenium import webdriver

BUILT = Path(__file__).parents[1] / "build" / "site" / "en"
PAINT = "return performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)"
SLOWEST = 5


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for flag in ["--headless=new", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def milliseconds(driver: webdriver.Chrome, page: Path) -> float:
    driver.get(page.as_uri())
    while not (times := driver.execute_script(PAINT)):
        pass
    return times[0]


def main() -> None:
    driver = browser()
    driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    pages = sorted(BUILT.rglob("*.html"))
    times = {page.relative_to(BUILT): milliseconds(driver, page) for page in pages}
    driver.quit()
    print(f"median of {len(times)} pages: {statistics.median(times.values()):.0f} ms to the first paint")
    for page in sorted(times, key=times.__getitem__, reverse=True)[:SLOWEST]:
        print(f"{times[page]:6.0f} ms  {page}")


if __name__ == "__main__":
    main()
