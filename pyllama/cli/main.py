"""The command line: `pyllama COMMAND --flags`.  A command is a function; its signature is the flags (see flags.py)."""
import difflib
import os
import signal
import sys
from collections.abc import Callable

from pyllama import __version__, backend
from pyllama.cli import output
from pyllama.cli.commands import ALIASES, COMMANDS, SECTIONS
from pyllama.cli.help import command_page, overview_page
from pyllama.cli.parsing import HelpWanted, parse
from pyllama.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 a check failed, 2 an error that the user can fix (one sentence on standard error), 128 + n after signal n.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        output.prepare()
        code = dispatch([word for word in argv if word != "--debug"])
        sys.stdout.flush()
        return code
    except BrokenPipeError:                                 # the reader of our output, such as `head`, has closed it
        output.drop()
        return 128 + signal.SIGPIPE
    except (UserError, OSError, MemoryError, RecursionError, KeyboardInterrupt) as error:
        if debug:
            raise
        output.complain(sentence(error, argv))
        return 128 + (error.args or (signal.SIGINT,))[0] if isinstance(error, KeyboardInterrupt) else 2


def sentence(error: BaseException, argv: list[str]) -> str:
    """The error with its cause and cure."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once" + ("; the last checkpoint is intact" if argv[0] in SECTIONS["train a model"] else "")
    if isinstance(error, OSError) and not isinstance(error, output.Unwritable):
        what = f"cannot open {os.fsdecode(error.filename)}: {error.strerror}" if error.filename else str(error)
        return f"{what}; check the name, the folder and its permissions"
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {error or 'none is left'}; make the model, the batch or the text smaller"
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read; give one with fewer levels"
    return str(error)


def dispatch(argv: list[str]) -> int:
    """Run the command, or print the help page or the version."""
    if argv[:1] in (["--version"], ["-V"], ["version"]):
        print(f"pyllama {__version__}")
        return 0
    if argv in (["--help"], ["-h"], ["help"]):
        print(overview_page(f"pyllama {__version__}: the LLaMA you can read, check and train.", SECTIONS))
        return 0
    if argv[:1] in (["--help"], ["-h"], ["help"]):
        argv = [*argv[1:], "--help"]
    name, command = command_named(argv[0] if argv else "")
    try:
        arguments = None if "--help" in argv else parse(command, argv[1:], name)
    except HelpWanted:
        arguments = None
    if arguments is None:
        print(command_page(name, command))
        return 0
    if backend.why_no_cpu.startswith("PYLLAMA_") and name != "env":                     # a variable has a wrong value
        raise UserError(backend.why_no_cpu)
    positional, named = arguments
    return command(*positional, **named)


def command_named(word: str) -> tuple[str, Callable]:
    """(name, function) of a command.  Raises UserError if there is no such command."""
    name = ALIASES.get(word, word)
    if name in COMMANDS:
        return name, COMMANDS[name]
    if not word:
        raise UserError(f"there is no command; give one of {', '.join(COMMANDS)} (`pyllama --help` describes them)")
    begun = [name for name in COMMANDS if len(word) > 1 and name.startswith(word.lower())]
    close = [*begun, *difflib.get_close_matches(word.lower(), [*COMMANDS, *ALIASES], 1)]
    hint = f"did you mean {close[0]}?" if close else "`pyllama --help` lists the commands"
    raise UserError(f"there is no command {word!r}; {hint}")


if __name__ == "__main__":
    sys.exit(main())
