"""Hypothesis profiles, a poisoned np.empty, a console as wide as COLUMNS says, modules of the site, and a browser."""
import functools
import gc
import importlib
import os
import shutil
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from pyllama import backend
from pyllama import op as op_module
from pyllama.cli.output import console
from pyllama.shapes import is_bfloat16

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]              # problems have thousands of numbers on purpose
settings.register_profile("dev", max_examples=30, deadline=None, suppress_health_check=slow)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True)         # a red CI is never a lottery
settings.register_profile("few", settings.get_profile("ci"), max_examples=5)            # for the lower instruction sets
settings.register_profile("deep", settings.get_profile("dev"), max_examples=600)       # nightly: 20 times more
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


if os.environ.get("PYLLAMA_TEST_GPU"):
    from tests import gpu
    gpu.install()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """A dozen thousand tests and what they import stay: a garbage collector that looks through them takes long."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item):
    """The random orders of GPU threads depend on the test alone, not on the tests before it."""
    if stand_in := sys.modules.get("tests.fakecupy"):
        stand_in.seed = zlib.crc32(item.nodeid.encode())


@pytest.fixture(autouse=True, scope="session")
def poison():
    """Fill np.empty with NaN, so that an output which a pass leaves partly unwritten shows.

    Bytes are the kernels' scratch memory, which they read as floats: these show reads of what was never written.
    """
    def poisoned(create):
        @functools.wraps(create)
        def create_poisoned(*args, **kwargs):
            a = create(*args, **kwargs)
            if a.dtype.kind in "fc" or is_bfloat16(a.dtype):
                a.fill(np.nan)
            elif a.dtype == np.uint8:
                a.fill(255)
            return a
        return create_poisoned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", poisoned(np.empty))
        patch.setattr(np, "empty_like", poisoned(np.empty_like))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk():
    """What a test writes need not outlive a power failure.  What is asked of the disk, and when, shows without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)            # refuses what is not a file
        yield


@pytest.fixture(autouse=True)
def width_of_the_environment(monkeypatch):
    """A test may set COLUMNS, which rich's console otherwise reads only when it is made: in whichever test that was."""
    monkeypatch.setattr(console, "_width", None)


@pytest.fixture
def unregistered(monkeypatch):
    """Ops made in a test do not join those of the library."""
    monkeypatch.setattr(op_module, "OPS", {})


@pytest.fixture
def kernels(monkeypatch):
    """Stands for the compiled module, built or not."""
    module = types.SimpleNamespace()
    monkeypatch.setattr(backend, "cpu", module)
    return module


@pytest.fixture(scope="module")
def site():
    """site(name): a module of docs/site/_ext."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "docs" / "site" / "_ext"))
        yield importlib.import_module


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that logs errors of scripts: make docs-test."""
    if not os.environ.get("PYLLAMA_TEST_BROWSER"):
        pytest.skip("runs with PYLLAMA_TEST_BROWSER=1, as in make docs-test")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    paths = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not all(paths):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--lang=en", "--window-size=1200,900":
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()
