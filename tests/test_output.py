"""Standard output as a person may have it: ASCII, closed, full, a terminal; and names that are hard to print."""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyllama.cli import main
from pyllama.cli.main import COMMANDS as TABLE
from pyllama.cli.output import escape, quoted, visible
from tests.forked import UNREAD, Forks

ROOT = Path(__file__).parents[1]
TINY = ["--num_hidden_layers", "1", "--num_attention_heads", "1", "--hidden_size", "8", "--batch_size", "2",
        "--block_size", "8", "--warmup_steps", "1", "--max_steps", "2"]
WORDS = "日本 \U0001f600 é\x1b[31m\n"


@pytest.mark.parametrize("name", ["run", "a b", "n\udcff's\\", "\x1b\n$x", "日\udc80a"])
def test_a_shell_reads_a_quoted_name_as_it_was_and_as_it_is_shown(name):
    said = subprocess.run(["bash", "-c", f"printf %s {visible(quoted(name))}"], capture_output=True, check=True).stdout
    assert said == os.fsencode(name)


def test_control_characters_are_visible():
    assert visible("a\tb\r\nc\rd\x1b[2J\x9b\x7f\u202e\udcff日") == r"a" "\tb\r\nc" r"\x0dd\x1b[2J\x9b\x7f\u202e\xff日"
    assert json.loads(f'"{escape(chr(0x1f600))}{escape("日")}"') == "\U0001f600日"


STREAMS = {                                     # redirections of a shell: the streams of a fork
    "": ("out", "err"),
    ">/dev/full": ("/dev/full", "err"),
    ">&-": (None, "err"),
    ">&- 2>&-": (None, None),
    "| true": (UNREAD, "err"),
}


@pytest.fixture(scope="module")
def forks():
    with contextlib.closing(Forks()) as forks:
        yield forks


@pytest.fixture
def process(forks, folder, tmp_path):
    """process(words, shell): (exit code, standard output, standard error) of the command in a fork, as bytes."""
    def run(words, shell="", encoding=None):
        files = [stream and (tmp_path / stream if stream in ("out", "err") else stream) for stream in STREAMS[shell]]
        for path in tmp_path / "out", tmp_path / "err":
            path.write_bytes(b"")
        code = forks.run(words, folder, files, encoding)
        return checked(code, (tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes())
    return run


def alone(words, folder, shell="", encoding=None):
    """What process() gives, of a process of its own, whose streams a shell redirects."""
    command = [sys.executable, "-X", "utf8=0", "-m", "pyllama", *words]
    if shell == "| true":                       # sh has no exit code of the first
        shell = ""
        read, stdout = os.pipe()
        os.close(read)
    else:
        stdout = subprocess.PIPE
    variables = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    variables |= {"PYTHONIOENCODING": encoding} if encoding else {}
    done = subprocess.run(["sh", "-c", f'exec "$@" {shell}', "sh", *command], stdout=stdout, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, check=False, cwd=folder, env=os.environ | variables)
    if stdout != subprocess.PIPE:
        os.close(stdout)
    return checked(done.returncode, done.stdout or b"", done.stderr)


def checked(code, out, err):
    assert b"Traceback" not in err, err.decode()
    assert b"Exception ignored" not in err, err.decode()
    return code, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, rows, and models of both, whose words are not ASCII."""
    folder = tmp_path_factory.mktemp("output")
    (folder / "text.txt").write_text(WORDS * 40)
    (folder / "rows.csv").write_text("text,label\n" + "日本,好\n中国,\U0001f600\n" * 12)
    assert main(["train", "--data", f"{folder}/text.txt", "--out_dir", f"{folder}/run", *TINY]) == 0
    assert main(["finetune", "--task", "classify", "--model", "lstm", "--data", f"{folder}/rows.csv", "--out_dir",
                 f"{folder}/tuned", "--max_steps", "2", "--warmup_steps", "1", "--vocab_size", "300"]) == 0
    shutil.copytree(folder / "run", folder / "base")            # which no test resumes
    assert main(["train", "--data", f"{folder}/text.txt", "--out_dir", f"{folder}/adapted", "--init_from",
                 f"{folder}/base", "--lora", "q_proj", "--rank", "1", "--max_steps", "1", "--batch_size", "2",
                 "--block_size", "8"]) == 0
    return folder


# Every command that prints, with what it needs.
COMMANDS = {
    "train": ["train", "--data", "text.txt", "--out_dir", "{new}", *TINY],
    "resume": ["resume", "run", "--max_steps", "3"],
    "finetune": ["finetune", "--task", "classify", "--model", "lstm", "--data", "rows.csv", "--out_dir", "{new}",
                 "--max_steps", "2", "--warmup_steps", "1", "--vocab_size", "300"],
    "distill": ["distill", "run", "--data", "text.txt", "--out_dir", "{new}", "--num_hidden_layers", "1", "--max_steps",
                "2", "--block_size", "8", "--batch_size", "2", "--warmup_steps", "1"],
    "distill rows": ["distill", "tuned", "--data", "rows.csv", "--out_dir", "{new}", "--max_steps", "2",
                     "--warmup_steps", "1"],
    "generate": ["generate", "--model", "run", "--prompt", "日本", "--max_new_tokens", "20"],
    "predict": ["predict", "--model", "tuned", "--text", "日本"],
    "predict --explain": ["predict", "--model", "tuned", "--text", "日本", "--explain", "gradient"],
    "predict rows": ["predict", "--model", "tuned", "--data", "rows.csv"],
    "evaluate": ["evaluate", "--model", "run", "--data", "text.txt"],
    "evaluate rows": ["evaluate", "--model", "tuned", "--data", "rows.csv"],
    "quantize": ["quantize", "run", "{new}.gguf", "--report"],
    "prune": ["prune", "base", "{new}", "--channels", "0.5"],
    "factorize": ["factorize", "base", "{new}", "--rank", "0.5"],
    "merge": ["merge", "adapted", "{new}"],
    "report": ["report", "text.txt"],
    "models": ["models"],
    "inspect": ["inspect", "run"],
    "inspect --tensors": ["inspect", "run", "--tensors"],
    "tasks": ["tasks"],
    "explain": ["explain", "run", "--text", "日本", "--out", "{new}"],
    "plan": ["plan", "run", "--prompt", "日本"],
    "plot": ["plot", "run"],
    "plot --attention": ["plot", "run", "--attention", "--text", "日本"],
    "plot --gradients": ["plot", "run", "--gradients", "--text", "日本"],
    "ops": ["ops"],
    "ops NAME": ["ops", "rms_norm"],
    "derive": ["derive"],
    "check": ["check", "relu", "--problems", "1"],
    "verify": ["verify", "numpy:tanh", "--op", "tanh", "--problems", "1"],
    "export-vectors": ["export-vectors", "{new}", "--op", "relu", "--count", "1"],
    "dojo": ["dojo", "--list"],
    "env": ["env"],
    "completion": ["completion"],
    "help": ["--help"],
    "help NAME": ["help", "train"],
}
assert {*TABLE} - {words[0] for words in COMMANDS.values()} == {"chat", "extract", "graph", "score"}
each_command = pytest.mark.parametrize("name", COMMANDS)


def words(name, new):
    return [word.format(new=new) for word in COMMANDS[name]]


@pytest.mark.parametrize("shell", STREAMS)
def test_a_fork_does_what_a_process_of_its_own_does(shell, process, folder):
    """The tests below ask forks, which start sooner."""
    words = ["predict", "--model", "tuned", "--data", "rows.csv"]
    assert process(words, shell) == alone(words, folder, shell)
    assert process(words, shell, "ascii") == alone(words, folder, shell, "ascii")


@each_command
def test_an_output_that_is_ascii_gets_escapes(name, process, tmp_path):
    code, out, err = process(words(name, tmp_path / "new"), encoding="ascii")
    assert code == 0, err
    assert out.isascii()
    if name == "predict rows":
        assert {json.loads(line)["text"] for line in out.splitlines()} == {"日本", "中国"}


@each_command
@pytest.mark.parametrize("shell", [">/dev/full", ">&-", ">&- 2>&-"])
def test_an_output_that_cannot_be_written_is_a_sentence(name, shell, process, tmp_path):
    code, _, err = process(words(name, tmp_path / "new"), shell)
    assert code == 2
    if "2>" not in shell:
        assert re.search(rb"cannot write to standard output: .*; redirect it to a file", err), err
        assert err.count(b"pyllama: ") == 1


@each_command
def test_an_output_that_is_closed_early_is_no_error(name, process, tmp_path):
    code, _, err = process(words(name, tmp_path / "new"), "| true")
    assert (code, err.replace(b"\n", b"")) == (128 + signal.SIGPIPE, b"") or b"pyllama: " not in err


LONG = "n" * 256


@pytest.mark.parametrize("argv", [
    ["train", "--data", LONG], ["train", "--data", "text.txt", "--out_dir", LONG, *TINY], ["resume", LONG],
    ["train", "--data", "text.txt", "--init_from", LONG], ["train", "--data", "text.txt", "--tokenizer", LONG],
    ["train", "--config", LONG], ["generate", "--model", LONG], ["generate", "--model", "run", "--tokenizer", LONG],
    ["generate", "--model", "run", "--prompt", f"FILE:{LONG}"], ["predict", "--model", LONG, "--text", "x"],
    ["predict", "--model", "tuned", "--data", LONG], ["predict", "--model", "tuned", "--text", "x", "--out", LONG],
    ["evaluate", "--model", LONG, "--data", "text.txt"], ["evaluate", "--model", "run", "--data", LONG],
    ["finetune", "--task", "classify", "--model", LONG, "--data", "rows.csv"], ["plot", LONG], ["report", LONG],
    ["report", "text.txt", "--out", LONG], ["finetune", "--task", "classify", "--model", "lstm", "--data", LONG],
], ids=lambda argv: " ".join(argv).replace(LONG, "LONG"))
@pytest.mark.parametrize("name", [LONG, "no\x1b[31m$\udcff"], ids=["long", "strange"])
def test_a_long_name_is_a_sentence_and_a_strange_one_a_name(argv, name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    code = main([word.replace(LONG, name) for word in argv])
    assert code in ((2,) if name == LONG else (0, 2))               # a command before may have made the file
    out, err = capsys.readouterr()
    assert "no\x1b" not in out + err
    assert err.count("pyllama: ") == (code == 2)
    assert err.count("\n") <= 1


def test_control_characters_of_a_text_stay_in_a_pipe_and_are_escaped_on_a_terminal(folder, monkeypatch, capsys):
    flags = ["generate", "--model", str(folder / "run"), "--prompt", "é\x1b[31m", "--max_new_tokens", "1"]
    assert main(flags) == 0
    assert "é\x1b[31m" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(flags) == 0
    assert r"é\x1b[31m" in capsys.readouterr().out


INTERRUPTED = """
import importlib.abc, os, runpy, signal, sys

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["pyllama", "env"]
runpy.run_module("pyllama", run_name="__main__")
"""


def test_ctrl_c_while_python_imports_leaves_no_traceback():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take only UTF-8")
def test_names_of_files_may_be_any_bytes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"f\xff\x1b[31m$")
    shutil.copy(folder / "text.txt", f"{name}.txt")
    shutil.copy(folder / "rows.csv", f"{name}.csv")
    for words in (["train", "--data", f"{name}.txt", "--out_dir", name, *TINY], ["resume", name, "--max_steps", "3"],
                  ["generate", "--model", name, "--prompt", f"FILE:{name}.txt", "--max_new_tokens", "1"],
                  ["evaluate", "--model", name, "--data", f"{name}.txt", "--out", f"{name}.json"],
                  ["report", f"{name}.txt", "--out", f"{name}.json"], ["report", "*.txt"],
                  ["finetune", "--task", "classify", "--model", "lstm", "--data", f"{name}.csv", "--out_dir",
                   f"{name}.tuned", "--max_steps", "2", "--warmup_steps", "1", "--vocab_size", "300"],
                  ["resume", f"{name}.tuned", "--max_steps", "3"],
                  ["predict", "--model", f"{name}.tuned", "--data", f"{name}.csv", "--out", f"{name}.jsonl"]):
        assert main(words) == 0, words
        assert "f\udcff" not in "".join(capsys.readouterr()), words
