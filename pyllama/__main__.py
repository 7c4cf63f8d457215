"""`python -m pyllama` and the script `pyllama` run the command line.

What is imported stays until the process ends.  A garbage collector that looks through it, time and again while it is
imported and once more at the end, would take a quarter of a short command.
"""
import gc
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
    gc.disable()
    from pyllama.cli.main import COMMANDS
    from pyllama.cli.main import main as run
    COMMANDS.get("".join(sys.argv[1:2]))                    # import the command
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, default)
    return run()


if __name__ == "__main__":
    sys.exit(main())
