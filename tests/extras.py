"""Marks for tests that need an optional package: without it they are skipped, and say what to install."""
from importlib.util import find_spec

import pytest


def needs(package, extra):
    """Skip the test where the package, of this extra of pyproject.toml, is not installed."""
    reason = f"needs {package}: pip install --editable '.[{extra}]'"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


needs_rouge = needs("rouge_score", "tasks")
needs_sacrebleu = needs("sacrebleu", "tasks")
needs_matplotlib = needs("matplotlib", "plot")
needs_scikit_learn = needs("sklearn", "dev")
