"""Another Python process, for what cannot be undone in this one: variables read at the start, threads, forks."""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(*arguments, timeout=120, **variables):
    """Run it on these arguments with these environment variables."""
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **variables}, cwd=ROOT, timeout=timeout,
                          capture_output=True, text=True, check=False)
