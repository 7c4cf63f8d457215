"""The command completion: a script with which bash and zsh complete commands, flags and values."""
from collections.abc import Callable, Mapping

from pyllama.cli import output
from pyllama.cli.commands import ALIASES, COMMANDS
from pyllama.cli.flags import flags_of
from pyllama.cli.help import UNUSED

SCRIPT = """\
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_pyllama() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" name="${{COMP_WORDS[1]}}"
    [ "$name" = help ] && [ "$COMP_CWORD" = 2 ] && COMP_CWORD=1
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "$name $before" in
{values}
    esac
    case "$word" in
        -*) ;;
        *) COMPREPLY=(); return ;;                          # a file: see -o default
    esac
    case "$name" in
{flags}
    esac
}}
complete -o default -F _pyllama pyllama"""


def completion() -> int:
    """Print a script for bash and zsh: eval "$(pyllama completion)" lets Tab complete commands, flags and values."""
    output.emit(script({name: COMMANDS[ALIASES.get(name, name)] for name in (*COMMANDS, *ALIASES)}))
    return 0


def script(commands: Mapping[str, Callable]) -> str:
    """The script for these commands."""
    values, flags = [], []
    for name, command in commands.items():
        labels = []
        for flag in flags_of(command):
            if flag.positional or flag.name in UNUSED.get(name, ()):
                continue
            labels += [flag.label] + [f"--no_{flag.name}"] * (flag.type is bool)
            if flag.choices:
                reply = f'COMPREPLY=($(compgen -W "{" ".join(flag.choices)}" -- "$word"))'
                values.append(f'        "{name} {flag.label}") {reply}; return ;;')
        reply = f'COMPREPLY=($(compgen -W "{" ".join([*labels, "--help"])}" -- "$word"))'
        flags.append(f"        {name}) {reply} ;;")
    return SCRIPT.format(commands=" ".join([*commands, "help"]), values="\n".join(values), flags="\n".join(flags))
