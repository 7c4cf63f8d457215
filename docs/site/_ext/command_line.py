"""The commands as their parsers know them: each with its usage, its description and its flags."""
import inspect
from collections.abc import Callable, Iterator

from docstrings import definition, described
from docutils import nodes

from pyllama.cli import help
from pyllama.cli.flags import Flag, flags_of
from pyllama.cli.main import ALIASES, SECTIONS


def sections() -> Iterator[nodes.section]:
    """A section for each group of commands, with one for each command."""
    for title, commands in SECTIONS.items():
        yield nodes.section("", nodes.title("", title.capitalize()), *map(section, commands, commands.values()),
                            ids=[title.replace(" ", "-")])


def section(name: str, command: Callable) -> nodes.section:
    flags = [flag for flag in flags_of(command) if flag.name not in help.UNUSED.get(name, ())]
    usage = help.usage(name, flags).removeprefix("usage: ")
    found = nodes.section("", nodes.title("", "", nodes.literal(name, name)), ids=[f"pyllama-{name}"],
                          support_smartquotes=False)
    found += nodes.literal_block(usage, usage, language="text")
    description, _, _ = (inspect.getdoc(command) or "").partition("\n\nArgs:")
    found += described(description)
    for alias in [alias for alias, full in ALIASES.items() if full == name]:
        found += described(f"`pyllama {alias}` is the same command.")
    for title, members in help.grouped(name, flags).items():
        found += nodes.rubric("", title.capitalize())
        found += nodes.definition_list("", *(definition((typed(flag), help.described(flag))) for flag in members))
    return found


def typed(flag: Flag) -> str:
    """The flag and its value, as they are typed."""
    return f"{flag.label} {flag.metavar}".rstrip()
