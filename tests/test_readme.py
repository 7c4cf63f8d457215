"""README.md and docs/ are true: their commands and their Python run, their tables are the code's."""
import json
import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

import pyllama
from pyllama.cli import main
from pyllama.cli.flags import flags_of
from pyllama.cli.main import ALIASES, COMMANDS
from pyllama.cli.parsing import SYNONYMS
from pyllama.tasks import TASKS
from pyllama.testing import GradcheckError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}

# Appended to a command, so that it runs in a second: the last of two equal flags counts.
TINY = {
    "train": "--n_layer 1 --n_head 2 --n_embd 8 --block_size 8 --batch_size 2 --max_steps 4 --warmup_steps 1 "
             "--eval_tokens 40",
    "resume": "--max_steps 6", "distill": "--block_size 8 --batch_size 2 --max_steps 4 --warmup_steps 1",
    "generate": "--max_new_tokens 5",
    "finetune": "--max_steps 4 --warmup_steps 1 --eval_steps 2 --batch_size 2 --max_length 8",
}
# The same for Python.
SMALLER = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "max_steps": 2, "max_new_tokens": 3}

PLAY = "ROMEO: a rose by any other name.\nJULIET: what is in a name?\n" * 30
REVIEWS = "text,label\n" + "a fine film,good\na dull film,bad\nfine acting,good\ndull acting,bad\n" * 5


def blocks_of_python(page):
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def commands(page):
    """The words of each `pyllama ...` in the indented blocks of a page."""
    joined = re.sub(r" *\\\n +", " ", page)
    return [shlex.split(line) for line in re.findall(r"^    pyllama (.*)$", joined, re.MULTILINE)]


def run(words):
    """The exit code of a command, at a tiny size; a model that is given has its own."""
    tiny = TINY.get(words[0], "").split()
    return main([*words, *(tiny[6:] if "--init_from" in words else tiny)])


def smaller(code):
    for name, value in SMALLER.items():
        code = re.sub(rf"\b{name}=\d+", f"{name}={value}", code)
    return code


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """A folder with what a reader has: texts, reviews, and a BERT."""
    monkeypatch.chdir(tmp_path)
    for name in ("input.txt", "other.txt"):
        Path(name).write_text(PLAY)
    for name in ("reviews.csv", "more_reviews.csv"):
        Path(name).write_text(REVIEWS)
    tagged = {"text": "Ann lives in Maine", "entities": [[0, 3, "PER"], [13, 18, "LOC"]]}
    Path("entities.jsonl").write_text((json.dumps(tagged) + "\n") * 20)
    pairs = [{"text": "<e1>Ann</e1> lives in <e2>Maine</e2>", "relation": "Live_In(e1,e2)"},
             {"text": "<e1>Ann</e1> left <e2>Maine</e2>", "relation": "Other"}]
    Path("relations.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs * 10))
    assert run(["train", "--model", "bert", "--tokenizer", "bpe", "--data", "input.txt", "--out_dir", "FOLDER"]) == 0


def derivation_and_code(path):
    """An op's file without the parts of its docstring that are there for callers."""
    docstring, quotes, code = path.read_text("utf-8").partition('\n"""\n')
    parts = re.split(r"\n(?=[A-Z])", docstring)
    kept = [part for part in parts if not part.startswith(("Arrays", "Options", "Raises", "Example"))]
    return "\n".join(kept).rstrip() + quotes + code


def test_the_op_that_is_shown_is_the_op_that_runs():
    assert derivation_and_code(ROOT / "pyllama/ops/rms_norm.py").strip() in README


@pytest.mark.parametrize("page", ["README.md", "training.md", "parameters.md", "tasks.md", "raspberry.md"])
def test_every_command_runs(page, readers_folder):
    assert len(commands(PAGES[page])) > 3
    for words in commands(PAGES[page]):
        if words[0] == "plot":
            pytest.importorskip("matplotlib")
        if words[0] == "extract":
            pytest.importorskip("rdflib")
        if "stories260K.bin" not in words:                  # tests/test_llama2c.py has models of this format
            assert run(words) == 0, words


def test_the_python_of_the_readme_trains_a_model_and_saves_it(readers_folder):
    example, = (block for block in blocks_of_python(README) if block.startswith("import pyllama"))
    assert example.count("\n") <= 12
    exec(smaller(example), {})
    assert pyllama.load("my-llama").config.hidden_size == SMALLER["hidden_size"]


def test_the_wrong_gradient_of_the_readme_is_named():
    """With a seed, and without a limit of time, which on a busy machine cuts the diagnosis short."""
    example, = (block for block in blocks_of_python(README) if "gradcheck" in block)
    drawn, fixed = "[np.random.randn(2, 3)]", "[np.random.default_rng(0).normal(size=(2, 3))], seed=0, budget=None"
    assert drawn in example
    example = example.replace(drawn, fixed)
    with pytest.raises(GradcheckError, match="Missing term: measured - claimed is y times something constant along"):
        exec(example, {})


@pytest.mark.parametrize("page", ["python.md", "parameters.md", "sharing.md", "pruning.md", "testing.md"])
def test_the_python_of_the_docs_runs(page, readers_folder):
    names = {}
    for block in blocks_of_python(PAGES[page]):
        exec(smaller(block), names)


def test_the_report_that_the_docs_show_is_what_is_printed(capsys):
    page = PAGES["testing.md"]
    block = blocks_of_python(page)[0]
    exec(block, {})
    printed, shown = " ".join(capsys.readouterr().out.split()), page.partition(block)[2].split("\n\n")[1:]
    report = [*takewhile(lambda paragraph: paragraph.startswith("    "), shown)]
    assert len(report) > 1
    for paragraph in report:
        assert " ".join(paragraph.split()) in printed


def table(page, head):
    """The words in backticks of each cell of each row, of the table whose first column is called so."""
    lines = PAGES[page].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |")) + 2
    rows = takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[re.findall(r"`(\w[\w-]*)", cell) for cell in row.strip("|").split("|")] for row in rows]


def first_column(page, head):
    return [name for cell, *_ in table(page, head) for name in cell]


def test_the_tables_of_commands_tasks_and_names_are_complete():
    assert sorted(first_column("commands.md", "command")) == sorted({*COMMANDS, *ALIASES})
    # Every task of this release has a row; a new one needs none, because `pyllama tasks` lists all.
    assert {"classify", "translate", "g2p", "qa", "relations", "summarize", "write", "instruct"} \
        <= {*first_column("tasks.md", "task")} <= {*TASKS}
    assert sorted(first_column("python.md", "name")) == sorted(pyllama.__all__)
    synonyms = {theirs: ours[0] for (*names, ), ours in table("commands.md", "nanoGPT, Hugging Face") if ours
                for theirs in names}
    assert synonyms == SYNONYMS


@pytest.mark.parametrize("page", ["README.md", "commands.md", "training.md", "tasks.md", "testing.md",
                                  "architecture.md", "raspberry.md"])
def test_every_flag_that_is_named_exists(page):
    known = {flag.name for command in COMMANDS.values() for flag in flags_of(command)} | {"config", "help", "debug"}
    known |= {"no_deps", "gradcheck_seed", "gradcheck_examples", "gradcheck_report"}     # of pip; of the pytest plugin
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z_-]*)", PAGES[page])}
    assert {SYNONYMS.get(flag, flag) for flag in flags} <= known


def test_every_target_that_is_named_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`?\bmake ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", [path for folder in (".", "docs", "bench") for path in (ROOT / folder).glob("*.md")],
                         ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[)#]", path.read_text("utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


def test_every_file_that_contributing_names_is_there():
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for name in re.findall(r"`((?:pyllama|csrc|tests|docs|bench)/[\w/.]+)`", page):
        assert "NAME" in name or (ROOT / name).exists(), name
