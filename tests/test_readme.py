"""What README.md says that a test can hold it to."""
import re
from pathlib import Path

from pyllama import cli, commands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_op_that_is_shown_is_the_op_that_runs():
    assert (ROOT / "pyllama/ops/rms_norm.py").read_text().strip() in README


def test_every_command_and_every_flag_that_is_named_exists():
    rows = [re.findall(r"`(\w+)", line) for line in README.splitlines() if line.startswith("| `")]
    assert {row[0] for row in rows if len(row) == 1 or row[0] in cli.COMMANDS} == set(cli.COMMANDS)
    shown = {theirs: row[-1] for row in rows for theirs in row[:-1] if row[-1] in cli.SYNONYMS.values()}
    assert shown == cli.SYNONYMS
    known = {name for settings in (commands.Text, commands.Shape, commands.Settings, commands.Keeping,
                                   commands.GenerationConfig) for name in settings.__dataclass_fields__}
    known |= {"out_dir", "config", "model", "prompt", "tokenizer", "help"}
    flags = {cli.SYNONYMS.get(flag, flag) for flag in re.findall(r"--([a-z_]+)", README)}
    assert flags <= known


def test_every_target_that_is_named_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
