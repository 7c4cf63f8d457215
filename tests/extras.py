"""Marks for tests that need an optional package: without it they are skipped with the command that installs it."""
from importlib.util import find_spec

import pytest


def needs(package, extra):
    """Skip the test if the package, which belongs to this extra of pyproject.toml, is not installed."""
    reason = f"needs {package}: pip install --editable '.[{extra}]'"
    return pytest.mark.skipif(find_spec(package) is None, reason=reason)


needs_rouge = needs("rouge_score", "tasks")
needs_sacrebleu = needs("sacrebleu", "tasks")
needs_matplotlib = needs("matplotlib", "plot")
needs_scikit_learn = needs("sklearn", "dev")
needs_sentencepiece = needs("sentencepiece", "dev")
