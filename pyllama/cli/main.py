"""The command line: `pyllama COMMAND --flags`.  A table of functions, whose signatures are the flags (see flags.py)."""
import difflib
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from pyllama import __version__, backend
from pyllama.cli import evaluate, inspect, overview, report, tasks, text
from pyllama.cli.display import console
from pyllama.cli.flags import flags_of, parse
from pyllama.cli.help import command_page, overview_page
from pyllama.errors import UserError

SECTIONS: dict[str, dict[str, Any]] = {
    "train a model": {"train": text.train, "resume": text.resume, "finetune": tasks.finetune},
    "use a trained model": {"generate": text.generate, "predict": tasks.predict, "evaluate": evaluate.evaluate},
    "show information": {"models": overview.models, "tasks": overview.tasks, "plot": text.plot, "report": report.report,
                         "env": inspect.env},
    "study the ops": {"ops": inspect.ops, "check": inspect.check},
}
COMMANDS: dict[str, Any] = {name: command for section in SECTIONS.values() for name, command in section.items()}
ALIASES = {"eval": "evaluate"}

# The names of our flags in nanoGPT and in Hugging Face's trainer.
SYNONYMS = {
    "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size", "dropout": "resid_pdrop", "dataset": "data", "max_iters": "max_steps",
    "eval_interval": "eval_steps", "log_interval": "log_steps", "warmup_iters": "warmup_steps",
    "lr_decay_iters": "lr_decay_steps", "grad_clip": "max_grad_norm", "lr_scheduler_type": "schedule",
    "per_device_train_batch_size": "batch_size", "output_dir": "out_dir", "adam_beta1": "beta1", "adam_beta2": "beta2",
    "num_train_epochs": "epochs", "start": "prompt", "num_samples": "num_return_sequences",
}
IGNORED = {"compile", "eval_iters"}                             # an evaluation reads all the text
SWITCHES = {flag.name for command in COMMANDS.values() for flag in flags_of(command) if flag.type is bool}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 a check failed, 2 an error that the user can fix (one sentence on standard error), 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        return dispatch([word for word in argv if word != "--debug"])
    except UserError as error:
        if debug:
            raise
        console.file.flush()
        print(f"pyllama: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:                                 # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if debug:
            raise
        print("pyllama: stopped at once; the last checkpoint is intact", file=sys.stderr)
        return 130


def dispatch(argv: list[str]) -> int:
    """Run the command, or print the help page or the version."""
    if argv[:1] == ["--version"]:
        print(f"pyllama {__version__}")
        return 0
    if argv[:1] in (["--help"], ["-h"], ["help"]):
        print(overview_page(f"pyllama {__version__}: the LLaMA you can read, check and train.", SECTIONS))
        return 0
    name, command = command_named(argv[0] if argv else "")
    if "--help" in argv or "-h" in argv:
        print(command_page(name, command))
        return 0
    if backend.why_no_cpu and any(variable in os.environ for variable in ("PYLLAMA_ISA", "PYLLAMA_NUM_THREADS")):
        raise UserError(backend.why_no_cpu)
    positional, named = parse(command, normalized(argv[1:]), name)
    return command(*positional, **named)


def command_named(word: str) -> tuple[str, Any]:
    """(name, function) of a command.  Raises UserError if there is no such command."""
    name = ALIASES.get(word, word)
    if name in COMMANDS:
        return name, COMMANDS[name]
    if not word:
        raise UserError(f"there is no command; give one of {', '.join(COMMANDS)} (`pyllama --help` describes them)")
    close = difflib.get_close_matches(word, COMMANDS, 1)
    hint = f"did you mean {close[0]}?" if close else "`pyllama --help` lists the commands"
    raise UserError(f"there is no command {word!r}; {hint}")


def normalized(words: list[str]) -> list[str]:
    """The flags under their own names.

    --config FILE becomes the flags in the file, before those of the command line, so that the latter win.  A synonym
    becomes our name, --flag=True becomes --flag and --flag=False --no_flag.  IGNORED flags are left out.
    """
    from_files: list[str] = []
    from_line: list[str] = []
    rest = iter(words)
    ignored = False
    for word in rest:
        if not word.startswith("--"):
            from_line += [] if ignored else [word]
            ignored = False
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = SYNONYMS.get(name, name)
        if name == "config":
            path = value or next(rest, "")
            if not path:
                raise UserError("--config needs the name of a TOML file after it")
            from_files += normalized(from_toml(Path(path)))
            continue
        ignored = name in IGNORED and not equals            # and its value, the next word unless that is a flag
        if name in IGNORED:
            continue
        if name in SWITCHES and value.lower() in ("true", "false"):
            from_line.append(f"--{name}" if value.lower() == "true" else f"--no_{name}")
        else:
            from_line.append(f"--{name}{equals}{value}")
    return from_files + from_line


def from_toml(path: Path) -> list[str]:
    """The flags set by a file of `name = value` lines.  The file is read, never run."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not TOML: {error}; write lines such as n_layer = 4") from None
    flags = []
    for name, value in values.items():
        if isinstance(value, dict):
            raise UserError(f"--config {path} has a section [{name}]; write the flags without sections")
        if isinstance(value, bool):
            flags.append(f"--{name}={value}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)] if value else []
        else:
            flags.append(f"--{name}={value}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
