"""Run pytest, with its plugin of gradients, on the source of a test file."""
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGIN = ["-p", "pyllama.testing.plugin", "-q", "--strict-markers", "-W", "error"]
HEAD = """
import numpy as np
import pytest
from pyllama.testing import between

def rms_norm(x, w, eps, wrong=False):
    r = (np.mean(x * x, -1, keepdims=True) + eps) ** -0.5
    n = x * r
    def back(dy):
        g = w * dy
        mean = w * np.mean(dy * n, -1, keepdims=True) if wrong else np.mean(g * n, -1, keepdims=True)
        return r * (g - n * mean), np.sum(dy * n, axis=tuple(range(dy.ndim - 1)))
    return n * w, back
"""
RIGHT = """
@pytest.mark.gradcheck("x[... D], w[D] -> y[... D]", eps=between(1e-6, 0.1))
def test_right(x, w, eps):
    return rms_norm(x, w, eps)
"""
WRONG = """
@pytest.mark.gradcheck("x[... D], w[D] -> y[... D]", eps=between(1e-6, 0.1))
def test_wrong(x, w, eps):
    return rms_norm(x, w, eps, wrong=True)
"""
TWICE = """
@pytest.mark.gradcheck("x[N] -> y[N]", examples=5)
def test_twice(x):
    return 1 * x, lambda dy: 2 * dy
"""
ONCE = TWICE.replace("twice", "once").replace("2 * dy", "1 * dy")


def run(pytester, source, *arguments, seed=0):
    """Run pytest on a file with this source, in this process; warnings are errors."""
    pytester.makepyfile(test_it=HEAD + source)
    seeds = [] if seed is None else [f"--gradcheck-seed={seed}"]
    return pytester.runpytest_inprocess(*PLUGIN, *seeds, *arguments)


def run_subprocess(pytester, monkeypatch, *arguments):
    """Run pytest on all files, in a process of its own; where CI is set, its summary would repeat whole failures."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester.runpytest_subprocess(*PLUGIN, *arguments)


def failure(result):
    """The lines of the first failure, below its title."""
    text = result.stdout.str()
    return re.search(r"^_+ .+ _+\n(.*?)\n(?:_+ .+ _+|gradcheck: \d.*|=+ .+ =+)$", text, re.M | re.S)[1].splitlines()


def summary(result):
    """(tests, examples, seed) of the terminal summary."""
    line, = [line for line in result.outlines if line.startswith("gradcheck: ") and "--gradcheck-seed" in line]
    return tuple(map(int, re.findall(r"\d+", line)))


def quiet(result):
    """Is none of our code in the output?"""
    text = result.stdout.str()
    return not re.search(r"plugin\w*\.py|Traceback|hypothesis", text)
