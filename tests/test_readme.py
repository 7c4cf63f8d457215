"""What README.md says that a test can hold it to."""
import re
from itertools import takewhile
from pathlib import Path

from pyllama.cli import text
from pyllama.cli.main import COMMANDS, SYNONYMS
from pyllama.tasks import TASKS
from pyllama.tasks.finetune import Setup
from pyllama.tasks.rows import Source

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_op_that_is_shown_is_the_op_that_runs():
    assert (ROOT / "pyllama/ops/rms_norm.py").read_text().strip() in README


def table(head):
    """The words in backticks of each row, of the table whose first column is called so."""
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |")) + 2
    return [re.findall(r"`(\w+)", line) for line in takewhile(lambda line: line.startswith("|"), lines[start:])]


def test_every_command_task_and_flag_that_is_named_exists():
    assert [row[0] for row in table("command")] == [*dict.fromkeys(row[0] for row in table("command"))]
    assert {row[0] for row in table("command")} == set(COMMANDS)
    assert {row[0] for row in table("task")} == set(TASKS)
    synonyms = [row for row in table("nanoGPT, Hugging Face") if row[-1] in SYNONYMS.values()]
    assert {theirs: row[-1] for row in synonyms for theirs in row[:-1]} == SYNONYMS
    known = {name for settings in (text.Text, text.ModelShape, text.Settings, text.RunPolicy,
                                   text.GenerationConfig, Source, Setup) for name in settings.__dataclass_fields__}
    known |= {"out_dir", "config", "model", "prompt", "tokenizer", "help", "task", "text", "export", "device"}
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z_-]*)", README)}
    assert {SYNONYMS.get(flag, flag) for flag in flags} <= known


def test_every_target_that_is_named_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
