"""Standard output and standard error: any encoding, control characters, streams that cannot be written.

A message has its control characters escaped.  So has data on a terminal, which would obey them; in a file or a pipe
data is unchanged.  A character that the output's encoding lacks is escaped as in JSON, so a line of JSON stays valid.
"""
import codecs
import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

# Of C0 and C1 all but tab, newline and the \r of a line's end; the marks that reorder a line; lone surrogates, which
# stand for the bytes of a file name that is not UTF-8.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
                     "|\r(?!\n)")
ESCAPED = "pyllama-escaped"                                 # the name of the error handler below


def visible(text: str) -> str:
    r"""The text with its control characters escaped, such as \x1b."""
    return CONTROL.sub(lambda match: escape(match[0]), text)


def escape(character: str) -> str:
    r"""\x1b of a control character, \u65e5 of another; two of these for one beyond U+FFFF, as in JSON."""
    code = ord(character)
    if code < 0x100 or 0xdc80 <= code < 0xdd00:             # the latter is a byte of a file name
        return f"\\x{code & 0xff:02x}"
    return "".join(f"\\u{unit:04x}" for unit in ([code] if code < 0x10000 else
                                                 [0xd800 + (code - 0x10000 >> 10), 0xdc00 + (code & 0x3ff)]))


def quoted(word: str) -> str:
    r"""The word as a shell takes it: in quotes where it needs them, $'\xff' if it has control characters."""
    if not CONTROL.search(word):
        return shlex.quote(word)
    return "$'" + "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
                          for byte in word.encode("utf-8", "surrogateescape")) + "'"


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(escape, error.object[error.start:error.end])), error.end


codecs.register_error(ESCAPED, _escape_unencodable)


class Messages(Console):
    """A console whose texts, also those in the cells of a table, are visible()."""

    def render_str(self, text: str, **options) -> Text:                     # type: ignore[override]
        """The text, as Console renders it."""
        return super().render_str(visible(text), **options)


console = Messages(highlight=False, soft_wrap=True, markup=False)           # a user's file name may look like markup


def emit(text: str, end: str = "\n") -> None:
    """Print data to standard output."""
    print(visible(text) if sys.stdout.isatty() else text, end=end, flush=True)


def note(sentence: str) -> None:
    """Print a note to standard error, where standard output has data."""
    print(visible(sentence), file=sys.stderr)


def complain(sentence: str) -> None:
    """Print an error to standard error, after what was printed before, as far as these can be written."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:                          # print(file=None) would write to standard output
            print(visible(f"pyllama: {sentence}"), file=sys.stderr, flush=True)


class Unwritable(OSError):
    """Standard output cannot be written."""


class Output(io.TextIOWrapper):
    """Standard output, whose errors are distinguished from those of other files."""

    def write(self, text: str) -> int:
        """Write the text.  Raises Unwritable; BrokenPipeError if the reader of a pipe has closed it."""
        with saying_so():
            return super().write(text)

    def flush(self) -> None:
        """Write what is buffered.  Raises as write() does."""
        with saying_so():
            super().flush()


@contextlib.contextmanager
def saying_so() -> Iterator[None]:
    """Raise Unwritable for an error of standard output."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop()                                              # what is left would fail again when the process ends
        raise Unwritable(f"cannot write to standard output: {error.strerror}; redirect it to a file or to {os.devnull}"
                         ) from None


def drop() -> None:
    """Send what is left for standard output to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def prepare() -> None:
    """Let standard output escape what it cannot encode; where it is closed, let the first text fail."""
    if sys.stdout is None:                                  # on its number, or the next file that is opened gets that
        closed = os.open(os.devnull, os.O_RDONLY)
        sys.stdout = Output(open(closed, "wb"), encoding="utf-8")           # noqa: SIM115 -- as long as the process
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        before = sys.stdout
        sys.stdout = Output(before.buffer, before.encoding, line_buffering=before.line_buffering,
                            write_through=before.write_through)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)
