"""Real data and trained weights beside the project, where a machine has them."""
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


def needs(*paths):
    """Skip the test, saying why, where one of the paths is absent."""
    absent = [str(path) for path in paths if not path.exists()]
    return pytest.mark.skipif(bool(absent), reason=f"not on this machine: {', '.join(absent)}")
