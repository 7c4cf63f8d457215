"""The command line: `pyllama COMMAND --flags`.  A table of functions; tyro makes the flags from their signatures."""
import dataclasses
import itertools
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

# Training splits a batch over the cores (training/loop.py).  A BLAS's own threads would spin against these, several
# times slower where another process wants a core too.  A BLAS reads this when NumPy is loaded: so it comes first.
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(variable, "1")

import tyro  # noqa: E402

from pyllama import __version__, backend  # noqa: E402
from pyllama.cli import evaluate, inspect, overview, report, tasks, text  # noqa: E402
from pyllama.cli.display import console  # noqa: E402
from pyllama.errors import UserError  # noqa: E402

COMMANDS: dict[str, Any] = {
    "train": text.train, "resume": text.resume, "generate": text.generate, "evaluate": evaluate.evaluate,
    "finetune": tasks.finetune, "predict": tasks.predict, "models": overview.models, "tasks": overview.tasks,
    "plot": text.plot, "report": report.report, "ops": inspect.ops, "check": inspect.check, "env": inspect.env}
ALIASES = {"eval": "evaluate"}

# What nanoGPT and Hugging Face's trainer call our flags.
SYNONYMS = {
    "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size", "dropout": "resid_pdrop", "dataset": "data", "max_iters": "max_steps",
    "eval_interval": "eval_steps", "log_interval": "log_steps", "warmup_iters": "warmup_steps",
    "lr_decay_iters": "lr_decay_steps", "grad_clip": "max_grad_norm", "lr_scheduler_type": "schedule",
    "per_device_train_batch_size": "batch_size", "output_dir": "out_dir", "adam_beta1": "beta1", "adam_beta2": "beta2",
    "num_train_epochs": "epochs", "start": "prompt", "num_samples": "num_return_sequences",
}
NEEDLESS = {"compile", "eval_iters"}                            # an evaluation reads all the text
BOOLEAN = {field.name for settings in (text.ModelShape, text.Settings, text.RunPolicy, text.GenerationConfig,
                                       tasks.SearchConfig)
           for field in dataclasses.fields(settings) if field.type is bool}


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 done, 1 a check failed, 2 the user can mend it (one sentence on standard error), 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    if argv[:1] == ["--version"]:
        print(f"pyllama {__version__}")
        return 0
    try:
        if backend.why_no_cpu and any(name in os.environ for name in ("PYLLAMA_ISA", "PYLLAMA_NUM_THREADS")):
            raise UserError(backend.why_no_cpu)
        flags = parse_flags([flag for flag in argv if flag != "--debug"])
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=flags, prog="pyllama",
            description=f"pyllama {__version__}: the LLaMA you can read, check and train.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes))
    except UserError as error:
        if debug:
            raise
        console.file.flush()
        print(f"pyllama: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:                                 # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        if debug:
            raise
        print("pyllama: stopped at once; the last checkpoint stands", file=sys.stderr)
        return 130


def parse_flags(argv: list[str]) -> list[str]:
    """The command and its flags as tyro knows them.

    --config FILE becomes the flags in the file, before those on the command line, so that the latter win.  A synonym
    becomes our name, --flag=True becomes --flag and --flag=False --no-flag.  NEEDLESS flags are left out.
    """
    out: list[str] = [ALIASES.get(word, word) for word in argv[:1]]
    rest = iter(argv[1:])
    for word in rest:
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or next(rest, "")
            if not path:
                raise UserError("--config needs the name of a TOML file after it")
            out[1:1] = parse_flags(["", *from_toml(Path(path))])[1:]
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            name = SYNONYMS.get(name, name)
            if name in NEEDLESS:
                if not equals:
                    next(rest, "")
            elif name in BOOLEAN and value.lower() in ("true", "false"):
                out.append(f"--{name}" if value.lower() == "true" else f"--no_{name}")
            else:
                out += [f"--{name}", value] if equals else [f"--{name}"]
        else:
            out.append(word)
    if any(word == "--freeze" and after.startswith("--") for word, after in itertools.pairwise([*out, "--"])):
        raise UserError("--freeze needs the name of a parameter after it, such as model.embed_tokens")
    return out


def from_toml(path: Path) -> list[str]:
    """The flags that a file of `name = value` lines sets.  It is read, never run."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}; name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not TOML: {error}; write lines such as n_layer = 4") from None
    flags = []
    for name, value in values.items():
        if isinstance(value, dict):
            raise UserError(f"--config {path} has a section [{name}]; write the flags without sections")
        if isinstance(value, bool):
            flags.append(f"--{name}={value}")
        else:
            flags += [f"--{name}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return flags


if __name__ == "__main__":
    sys.exit(main())
