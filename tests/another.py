"""Run another Python process, for effects that cannot be undone in this one: variables, threads, forks."""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(*arguments, timeout=120, **variables):
    """Run Python with these arguments and environment variables, in the root of the project."""
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **variables}, cwd=ROOT, timeout=timeout,
                          capture_output=True, text=True, check=False)
