"""The words of a command line, and the lines of a --config file, as the arguments of a command.

    --flag VALUE, --flag=VALUE              a flag with a value
    --flag A B, --flag A --flag B           one with several
    --switch, --no_switch, --switch False   one without a value
    --explain, --explain gradient           one that may stand alone (WITHOUT_VALUE)
    --                                      all words after it are positional

A value may begin with a hyphen.  Only where it could be a flag it must be written --flag=VALUE.  A flag may have its
name in nanoGPT or in Hugging Face's trainer.
"""
import difflib
import glob
import inspect
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_origin

from pyllama.cli.flags import Flag, dataclasses_of, flags_of
from pyllama.errors import UserError

SYNONYMS = {
    "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size", "dropout": "resid_pdrop", "dataset": "data", "max_iters": "max_steps",
    "eval_interval": "eval_steps", "log_interval": "log_steps", "warmup_iters": "warmup_steps",
    "lr_decay_iters": "lr_decay_steps", "grad_clip": "max_grad_norm", "lr_scheduler_type": "schedule",
    "per_device_train_batch_size": "batch_size", "output_dir": "out_dir", "adam_beta1": "beta1", "adam_beta2": "beta2",
    "num_train_epochs": "epochs", "start": "prompt", "num_samples": "num_return_sequences",
}
# Accepted without effect: an evaluation reads all the text, and a run always keeps its latest and its best checkpoint.
IGNORED = ("compile", "eval_iters", "always_save_checkpoint", "backend", "wandb_project", "wandb_run_name")
# Of nanoGPT's sample.py: it names a run by its out_dir, and says with init_from that it is one.
OWN_SYNONYMS = {"generate": {"out_dir": "model"}}
OWN_IGNORED = {"generate": ("init_from",)}
# Settings of nanoGPT whose values name something else here, or nothing.  A text refuses, a dict sets our flags instead.
NANOGPT: dict[tuple[str, str], dict[str, str] | str] = {
    ("decay_lr", "true"): {}, ("decay_lr", "false"): {"schedule": "constant"},
    ("wandb_log", "false"): {}, ("wandb_log", "true"):
        "wandb_log: Weights & Biases is not supported; use --tensorboard, or read log.jsonl in the run's folder",
    ("eval_only", "false"): {}, ("eval_only", "true"):
        "eval_only: a model is evaluated by `pyllama evaluate --model RUN --data FILE`; use that",
    ("init_from", "scratch"): {}, ("init_from", "resume"):
        "init_from resume: a run is continued by `pyllama resume RUN`; use that",
    ("dtype", "float16"): "dtype float16: nothing is computed in it here; use --dtype bfloat16, or remove --dtype",
}
WITHOUT_VALUE = {"explain": "integrated"}                  # flags that may stand alone, and what they then mean
OUTPUTS = ("out", "export")
TEXTS = ("data", "runs", "file")                            # names of files that are not always of type Path
# The files of a run, of a model or of a folder of texts that a command needs.
NEEDED = re.compile(r"(checkpoints|data)/.*|latest|best|lock|(generation_)?config\.json|.*tokenizer.*|vocab\..*|"
                    r".*\.(safetensors|bin|model|jsonl|md|rst|text|txt)", re.IGNORECASE)
GLOBAL = ("config", "debug", "help")
SWITCHED = {"true": "true", "false": "false", "1": "true", "0": "false"}
FLAG = re.compile(r"--[A-Za-z][\w-]*(=.*)?", re.DOTALL)

Raw = dict[str, list[str]]                                  # {flag: its values as text}


class HelpWanted(Exception):
    """The words ask for the help page."""


def parse(command: Callable, words: Sequence[str], name: str) -> tuple[list, dict[str, Any]]:
    """(positional, named) arguments to call the command with; parameters that are dataclasses are constructed.

    name    of the command, for messages
    Raises UserError if a flag is unknown, missing or has an unsuitable value; HelpWanted for --help.
    """
    flags = flags_of(command)
    values = Reader(flags, name).values(words)
    if missing := [flag for flag in flags if flag.required and flag.name not in values]:
        needed = listed([f"{flag.label} ({flag.help})" for flag in missing])
        raise UserError(f"{name} needs {needed}; see `pyllama {name} --help`")
    positional = [values.pop(flag.name) for flag in flags if flag.positional and flag.name in values]
    named = {flag.name: values[flag.name] for flag in flags if not flag.owner and flag.name in values}
    for owner, parameter in inspect.signature(command).parameters.items():
        annotation: Any = parameter.annotation
        if dataclasses_of(annotation):
            owned = {flag.name: values[flag.name] for flag in flags if flag.owner == owner and flag.name in values}
            named[owner] = owned if get_origin(annotation) is Annotated else annotation(**owned)
    return positional, named


class Reader:
    """Reads the words of one command."""

    def __init__(self, flags: list[Flag], command: str):
        self.command, self.help = command, f"see `pyllama {command} --help`"
        self.synonyms = SYNONYMS | OWN_SYNONYMS.get(command, {})
        self.ignored = (*IGNORED, *OWN_IGNORED.get(command, ()))
        self.positional = [flag for flag in flags if flag.positional]
        self.flags = {flag.name: flag for flag in flags if not flag.positional}
        self.no = {f"no_{flag.name}": flag.name for flag in flags if flag.type is bool}
        self.behind: dict[str, Flag] = {}                   # the switch right before a word that is not its value

    def values(self, words: Sequence[str]) -> dict[str, Any]:
        """{name: value} of the flags and positional arguments that the words set; the command line wins over files."""
        files: list[Path] = []
        positional: list[str] = []
        line = self.line(list(words), files, positional)
        raw: Raw = {}
        for path in files:
            raw |= self.file(path, ())
        values = {name: self.value(self.flags[name], given) for name, given in (raw | line).items()}
        for flag in self.positional:
            given, positional = (positional, []) if flag.several else (positional[:1], positional[1:])
            values |= {flag.name: self.value(flag, given)} if given else {}
        if positional:
            refuse_python(positional[0])
            if positional[0] in self.behind:
                self.refuse_switch(self.behind[positional[0]], positional[0])
            raise UserError(f"{self.command} has no argument {positional[0]}; {self.help}")
        keep_inputs(values)
        return values

    def line(self, words: list[str], files: list[Path], positional: list[str]) -> Raw:
        """The flags of a command line.  Appends to the names of --config files, and to the positional arguments."""
        raw: Raw = {}
        while words:
            word = words.pop(0)
            if word == "--":
                positional += words
                break
            if word in ("-h", "--help"):
                raise HelpWanted
            if not self.is_flag(word):
                if word.startswith("-") and word != "-":
                    self.refuse(word)
                positional.append(word)
                continue
            name, equals, value = self.split(word)
            if name == "config":
                files.append(Path(value if equals else self.next(word, words)))
            elif name != "debug":
                self.set(raw, name, self.given(word, name, [value] if equals else [], words))
        return raw

    def split(self, word: str) -> tuple[str, str, str]:
        """(our name of the flag, "=" or "", the value after it) of a word that begins with --."""
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        return self.synonyms.get(name, name), equals, value

    def is_flag(self, word: str) -> bool:
        """Does the word name a flag of this command?"""
        name = self.split(word)[0]
        known = name in self.flags or name in self.no or name in GLOBAL or name in self.ignored
        return word.startswith("--") and (known or any(name == theirs for theirs, _ in NANOGPT))

    def given(self, word: str, name: str, values: list[str], words: list[str]) -> list[str]:
        """The values of a flag: those after its "=", or the next words, which are taken out of `words`."""
        flag = self.flags.get(name)
        if values:
            return values
        if flag is None or flag.type is bool:               # a switch, or one of another program
            known = (*SWITCHED, *(flag.words if flag else ()))
            takes = words and (words[0].lower() in known if name not in self.ignored else not self.is_flag(words[0]))
            if flag and words and not takes:
                self.behind[words[0]] = flag
            return [words.pop(0)] if takes else ["true"]
        if name in WITHOUT_VALUE and words[:1] not in [[choice] for choice in flag.choices]:
            return [WITHOUT_VALUE[name]]
        values = [self.next(word, words)]
        while flag.several and words and not self.is_flag(words[0]) and not FLAG.fullmatch(words[0]) \
                and words[0] not in ("--", "-h"):
            values.append(words.pop(0))
        return values

    def next(self, word: str, words: list[str]) -> str:
        """The value in the next word.  Raises UserError if there is none, or if it could be a flag."""
        if not words:
            what = "needs the name of a TOML file after it" if word == "--config" else f"needs a value; {self.help}"
            raise UserError(f"{word} {what}")
        if self.is_flag(words[0]) or (FLAG.fullmatch(words[0]) and self.close(words[0], 0.8)):
            raise UserError(f"{word} needs a value; {self.help} (if {words[0]} is the value, write {word}={words[0]})")
        return words.pop(0)

    def set(self, raw: Raw, name: str, given: list[str]) -> None:
        """Add the values of a flag to the others, under our name."""
        value = given[-1].lower() if given else ""
        if (name, "true") in NANOGPT:
            value = SWITCHED.get(value, value)
        is_ours = name in self.flags and value in self.flags[name].choices
        ours = None if is_ours or name in self.ignored else NANOGPT.get((name, value))
        if isinstance(ours, str):
            raise UserError(ours)
        if ours is not None:
            for flag, word in ours.items():
                if flag in self.flags:
                    raw.setdefault(flag, [word])
        elif name in self.no:
            raw[self.no[name]] = ["false"]
        elif name in self.flags:
            several = self.flags[name].several
            raw[name] = [*(raw.get(name, []) if several else []), *given]
        elif name not in self.ignored:
            switch = (name, "true") in NANOGPT and value not in SWITCHED
            raise UserError(f"{name} is {given[-1]!r}; it must be True or False" if switch else
                            f"{self.command} has no flag --{name}; {self.help}")

    def value(self, flag: Flag, given: list[str]) -> Any:
        """The words as the value of a flag.  Raises UserError if they do not fit."""
        if flag.type is bool:
            if given[-1] in flag.words:
                return given[-1]
            if given[-1].lower() not in SWITCHED:
                self.refuse_switch(flag, given[-1])
            return SWITCHED[given[-1].lower()] == "true"
        return tuple(map(flag.value, given)) if flag.several else flag.value(given[-1])

    def refuse_switch(self, flag: Flag, word: str) -> NoReturn:
        """Raise UserError for a word that is not a value of the switch."""
        values = ", ".join(("True", "False", *flag.words))
        raise UserError(f"{flag.label} is {word!r}; it may stand alone, or be one of {values}")

    def file(self, path: Path, including: tuple[Path, ...]) -> Raw:
        """The flags set by a file of `name = value` lines, and by the file that its own `config` names.

        The file is read, never run.  including: the files that lead to this one.  Raises UserError.
        """
        if path.resolve() in including:
            raise UserError(f"--config {path} includes itself; remove its line `config = ...`")
        raw: Raw = {}
        for key, value in toml(path).items():
            name = self.split(f"--{key}")[0]
            if name == "config":
                raw = self.file(path.parent / str(value), (*including, path.resolve())) | raw
                continue
            if not self.is_flag(f"--{key}"):
                self.refuse(f"--{key}")
            values = [str(item) for item in (value if isinstance(value, list) else [value])]
            if isinstance(value, list) and (name not in self.flags or not self.flags[name].several):
                raise UserError(f"--config {path} has a list for {key}, which takes one value; write {key} = ...")
            raw.pop(name, None)
            if values:
                self.set(raw, name, values)
        return raw

    def close(self, word: str, cutoff: float = 0.6) -> str:
        """The flag that the word may have meant, or ""."""
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        close = difflib.get_close_matches(name, [*self.flags, *self.synonyms], 1, cutoff)
        return f"--{close[0]}" if close else ""

    def refuse(self, word: str) -> NoReturn:
        """Raise UserError for a word that is not a flag of the command."""
        close = self.close(word)
        value = " (a value that begins with -- is written --flag=--x)" if word.startswith("--") else ""
        hint = f"did you mean {close}?" if close else f"{self.help}{value}"
        raise UserError(f"{self.command} has no flag {word.partition('=')[0]}; {hint}")


def keep_inputs(values: dict[str, Any]) -> None:
    """Raise UserError if a file to write (out, export) is one that the command reads, or a part of a model."""
    for name in OUTPUTS:
        path = values.get(name)
        if not isinstance(path, Path):
            continue
        for other, value in values.items():
            sources = value if isinstance(value, tuple) else (value,)
            reads = other != name and (other in TEXTS or any(isinstance(source, Path) for source in sources))
            if reads and any(holds(source, path) for source in sources):
                raise UserError(f"{name} is {path}, which {other} names or contains, too; write another file")


def holds(source: str | Path, path: Path) -> bool:
    """Is the path that of a source: a file, one that matches a pattern, or one that a folder needs?"""
    if str(source) == "-":                                  # standard input
        return False
    folder, path = Path(os.path.realpath(source)), Path(os.path.realpath(path))
    if folder == path:
        return path.is_file() or not path.exists()
    if not path.is_file():
        return False
    if folder.is_dir():
        return folder in path.parents and bool(NEEDED.fullmatch(path.relative_to(folder).as_posix()))
    return (folder.exists() and folder.samefile(path)) or \
        any(os.path.samefile(match, path) for match in glob.glob(str(source), recursive=True))


def toml(path: Path) -> dict[str, Any]:
    """The lines of a TOML file.  Raises UserError if it cannot be read or has sections."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse_python(path)
        reason = "its lists are nested too deeply" if isinstance(error, RecursionError) else \
            "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise UserError(f"--config {path} is not TOML: {reason}; write lines such as n_layer = 4") from None
    if sections := [name for name, value in values.items() if isinstance(value, dict)]:
        raise UserError(f"--config {path} has a section [{sections[0]}]; write the flags without sections")
    return values


def refuse_python(path: str | Path) -> None:
    """Raise UserError if this is a file of settings in Python, as nanoGPT has."""
    if Path(path).suffix == ".py":
        raise UserError(f"{path} is a program in Python, which is not run; write its settings as TOML, such as n_layer "
                        f"= 4, compile = false and dataset = \"FILE\", and give them with --config FILE.toml")


def listed(words: Sequence[str]) -> str:
    """The words as a list in a sentence: a, b and c."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
