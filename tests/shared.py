"""Real data and trained weights in a folder beside the project, on machines that have them; small files of a test."""
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


def needs(*paths):
    """Skip the test if one of the paths is absent, and name it."""
    absent = [str(path) for path in paths if not path.exists()]
    return pytest.mark.skipif(bool(absent), reason=f"not on this machine: {', '.join(absent)}")


def written(path, text):
    """The path, after writing the text there in UTF-8."""
    path.write_text(text, encoding="utf-8")
    return path
