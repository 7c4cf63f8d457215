"""The command line: main(argv) runs a command and returns its exit code."""
from pyllama.cli.main import main

__all__ = ["main"]
