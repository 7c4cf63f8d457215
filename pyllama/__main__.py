"""`python -m pyllama` and the script `pyllama` run the command line."""
import os
import signal
import sys


def leave(number, frame):
    """End without a traceback, which Ctrl-C would leave in the middle of an import."""
    os._exit(128 + number)


def main() -> int:
    """Run the command line and return its exit code."""
    default = signal.getsignal(signal.SIGINT)
    if default == signal.default_int_handler:               # not one that the parent process ignores
        signal.signal(signal.SIGINT, leave)
    from pyllama.cli.main import main as run
    signal.signal(signal.SIGINT, default)
    return run()


if __name__ == "__main__":
    sys.exit(main())
