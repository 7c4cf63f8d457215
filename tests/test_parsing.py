"""Words of a command line, and lines of a --config file, as the arguments of a function."""
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pyllama.cli import main
from pyllama.cli.flags import flags_of
from pyllama.cli.parsing import HelpWanted, parse
from pyllama.cli.text import train
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, SearchConfig


@dataclass(frozen=True)
class Window:
    size: float = 1.0           # how wide
    stop_strings: tuple[str, ...] = ()      # where it ends


def command(runs: tuple[Path, ...] = (), /, window: Window | None = None, prompt: str = "", text: tuple[str, ...] = (),
            seed: int | None = 1, on: bool = False, schedule: str = "cosine"):
    pass


command.__annotations__["window"] = Window


def named(*words):
    """The named arguments that the words set."""
    return parse(command, words, "c")[1]


@pytest.mark.parametrize("value", ["---", "--", "--x", "-", "-5", "--x y", "--=", "-h", "--\n", "", "=", "--no"])
def test_a_value_may_begin_with_hyphens(value):
    for name in ("prompt", "text", "stop_strings"):
        several = name != "prompt"
        for words in ((f"--{name}={value}",), (f"--{name}", value)):
            values = named(*words, "--seed", "3")
            assert values["seed"] == 3
            values |= vars(values["window"])
            assert values[name] == ((value,) if several else value), words


@pytest.mark.parametrize("value", ["--seed", "--on", "--no_on", "--config", "--debug", "--help", "--n_layer=3",
                                   "--max-iters", "--schedul", "--prompt=x"])
def test_a_value_that_could_be_a_flag_needs_an_equals_sign(value):
    assert named(f"--prompt={value}") == {"prompt": value, "window": Window()}
    assert named(f"--text={value}", "b")["text"] == (value,)


def test_a_flag_after_a_flag_means_that_a_value_is_missing():
    with pytest.raises(UserError, match=r"^--prompt needs a value; see `pyllama c --help` \(.*write --prompt=--seed\)"):
        named("--prompt", "--seed", "3")
    with pytest.raises(UserError, match="--prompt needs a value"):
        named("--prompt", "--schedul", "3")                                 # a misspelled flag is not a value
    with pytest.raises(UserError, match=r"c has no flag --zz; .*written --flag=--x"):
        named("--text", "a", "--zz")
    assert named("--text", "a", "---", "--x y", "-5")["text"] == ("a", "---", "--x y", "-5")


def test_a_number_that_no_count_can_be_is_refused():
    assert named("--seed", str(2 ** 63 - 1))["seed"] == 2 ** 63 - 1
    for word in (str(2 ** 63), "-9" + "9" * 30, "1e3", "9" * 5000):
        with pytest.raises(UserError, match="--seed is"):
            named("--seed", word)


def test_a_flag_with_several_values_may_be_repeated():
    assert named("--text", "a", "b", "--text=c")["text"] == ("a", "b", "c")
    assert named("--prompt", "a", "--prompt=b")["prompt"] == "b"


def test_words_after_two_hyphens_are_positional():
    assert parse(command, ["--on", "--", "--seed", "-x"], "c")[0] == [(Path("--seed"), Path("-x"))]
    with pytest.raises(UserError, match="c has no flag -x"):
        parse(command, ["-x"], "c")


@pytest.mark.parametrize(("words", "on"), [
    (["--on"], True), (["--no_on"], False), (["--on", "False"], False), (["--on", "true"], True),
    (["--on", "0"], False), (["--on", "1"], True), (["--on=0"], False),
    (["--on=FALSE"], False), (["--on", "--no-on"], False), (["--on", "x"], True)])
def test_a_switch(words, on):
    assert named(*words)["on"] is on


def test_help_is_help_unless_it_is_a_value():
    for words in (["-h"], ["--help"], ["--on", "-h"], ["--text", "a", "-h"], ["x", "--seed", "3", "--help"]):
        with pytest.raises(HelpWanted):
            named(*words)
    assert named("--", "--help")["window"] == Window()


@pytest.mark.parametrize("hyphens", [True, False])
def test_names_of_other_programs(hyphens):
    words = ["--start", "x", "--wandb_log=False", "--decay_lr=False", "--eval_only", "False", "--eval_iters", "20",
             "--always_save_checkpoint=True", "--wandb_project", "owt", "--compile", "--backend=nccl", "--seed=2"]
    assert named(*(word.replace("_", "-") if hyphens else word for word in words)) == {
        "prompt": "x", "schedule": "constant", "seed": 2, "window": Window()}
    assert named("--decay_lr=True")["window"] == Window()
    assert named("--schedule=linear", "--decay_lr=False")["schedule"] == "linear"


@pytest.mark.parametrize(("word", "sentence"), [
    ("--wandb_log=True", "wandb_log: Weights & Biases is not supported; use --tensorboard"),
    ("--eval_only=True", "a model is evaluated by `pyllama evaluate --model RUN --data FILE`"),
    ("--init_from=resume", "a run is continued by `pyllama resume RUN`"),
    ("--dtype=float16", "dtype float16: nothing is computed in it here; use --dtype bfloat16, or remove --dtype"),
    ("--dtype=bf16", "--dtype is 'bf16'; it must be one of float32, float64, bfloat16"),
    ("--wandb_log=3", "wandb_log is '3'; it must be True or False"),
    ("--always_save=3", r"train has no flag --always_save; see|did you mean"),
])
def test_settings_of_nanogpt_that_are_nothing_here_are_refused_with_what_to_do(word, sentence, capsys):
    assert main(["train", "--data", "x", word]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_a_file_sets_flags_and_the_command_line_wins(tmp_path):
    path = tmp_path / "flags.toml"
    path.write_text('\ufeffprompt = "--x"\ntext = ["--seed", "b"]\nno-on = true\nseed = 5\nstart = "--y"\n'
                    "compile = true\n")
    values = named("--seed", "3", "--text", "a", "--config", str(path))
    assert values == {"prompt": "--y", "text": ("a",), "on": False, "seed": 3, "window": Window()}
    assert named("--config", str(path))["text"] == ("--seed", "b")
    (tmp_path / "outer.toml").write_text('config = "flags.toml"\nseed = 6')
    assert named(f"--config={tmp_path}/outer.toml")["seed"] == 6


@pytest.mark.parametrize(("content", "sentence"), [
    ('config = "flags.toml"', "includes itself; remove its line"),
    ("[train]\nseed = 1", r"has a section \[train\]"),
    ("prompt = ['a', 'b']", "has a list for prompt, which takes one value"),
    ("sed = 1", "c has no flag --sed; did you mean --seed"),
    ("seed = 1.5", "--seed is '1.5'; it must be a whole number"),
    ("a = " + "[" * 5000, "is not TOML: its lists are nested too deeply; write lines such as n_layer = 4"),
    ("seed = 1 # \udcff", "is not TOML: it is not UTF-8; write lines"),
])
def test_a_file_that_cannot_be_used(content, sentence, tmp_path):
    (tmp_path / "flags.toml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=sentence):
        named("--config", str(tmp_path / "flags.toml"))


def test_settings_in_python_are_not_run_but_a_cure_is_given(tmp_path):
    (tmp_path / "gpt.py").write_text("n_layer = 4\ncompile = False\n")
    (tmp_path / "plain.py").write_text("seed = 4\n")
    assert named("--config", str(tmp_path / "plain.py"))["seed"] == 4
    with pytest.raises(UserError, match=r"gpt\.py is a program in Python, .* write its settings as TOML"):
        named("--config", str(tmp_path / "gpt.py"))
    with pytest.raises(UserError, match=r"gpt\.py is a program in Python, .* with --config FILE\.toml"):
        parse(train, ["config/gpt.py", "--data", "x"], "train")


COMPLETE = """
set -eu
ZSH_VERSION=
eval "$SCRIPT"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
_pyllama || true
echo "${COMPREPLY[*]-}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("words", "replies"), [
    (["ge"], {"generate"}), (["ch"], {"chat", "check"}), (["q"], {"quantize"}),
    (["e"], {"evaluate", "explain", "extract", "env", "eval", "export-vectors"}),
    (["help", "ge"], {"generate"}),
    (["train", "--max_s"], {"--max_steps"}), (["train", "--schedule", "co"], {"cosine", "constant"}),
    (["eval", "--bl"], {"--block_size"}), (["generate", "--no_do"], {"--no_do_sample"}),
    (["train", "--data", "x"], set()), (["env", "--"], {"--help"}), (["report", "a"], set()),
    (["nosuch", "--a"], set()),
])
def test_a_shell_completes_commands_flags_and_values(words, replies, capsys):
    assert main(["completion"]) == 0
    script = capsys.readouterr().out
    done = subprocess.run(["bash", "-c", COMPLETE, "bash", "pyllama", *words], env=os.environ | {"SCRIPT": script},
                          capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == replies


@pytest.mark.parametrize(("words", "value"), [
    (["--early_stopping"], True), (["--early_stopping", "never"], "never"), (["--early_stopping=never"], "never"),
    (["--early_stopping", "False"], False), (["--no_early_stopping"], False),
    (["--early_stopping", "--prompt=a"], True)])
def test_a_switch_may_have_other_values(words, value):
    def search(early_stopping: bool | Literal["never"] = False, prompt: str = ""):
        pass

    assert parse(search, words, "search")[1]["early_stopping"] == value
    for given in ["--early_stopping=always"], ["--early_stopping", "always"]:
        with pytest.raises(UserError, match="is 'always'; it may stand alone, or be one of True, False, never"):
            parse(search, given, "search")


def test_the_flags_of_a_dataclass_include_those_of_its_base():
    """With their help, which is the comment beside each field."""
    flags = {flag.name: flag for flag in flags_of(GenerationConfig)}
    assert {flag.name for flag in flags_of(SearchConfig)} < flags.keys()
    assert all(flag.help for flag in flags.values())
    assert "output_scores" not in flags
