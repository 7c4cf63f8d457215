"""The command chat: from a pipe, on a terminal, and where the context ends."""
import json
import os
import pty
import signal
import subprocess
import sys

import numpy as np
import pytest

import pyllama
from pyllama.cli import chat
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks.conversation import Conversation
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a chat template and the context of 200 bytes."""
    model = pyllama.create("llama", Tokenizer(Tokenizer.bytes().rust, {"chat_template": TEMPLATE}), hidden_size=8,
                           num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=200)
    path = tmp_path_factory.mktemp("chat") / "model"
    model.save(path)
    return path


def from_pipe(monkeypatch, text, *flags):
    source = os.pipe()
    with os.fdopen(source[1], "w", errors="surrogateescape") as writer:
        writer.write(text)
    with os.fdopen(source[0]) as reader:
        monkeypatch.setattr(sys, "stdin", reader)
        return main(["chat", *map(str, flags)])


def test_from_a_pipe_only_the_answers_are_printed(folder, monkeypatch, capsys):
    model = pyllama.load(folder)
    assert from_pipe(monkeypatch, "One?\n\nTwo?\n", folder, "--temperature", "0", "--max_new_tokens", "5") == 0
    output = capsys.readouterr()
    first = model.generate("user: One?\nassistant:", max_new_tokens=5).removeprefix("user: One?\nassistant:")
    assert output.out.startswith(first.lstrip())
    assert output.out.count("\n") >= 2
    assert output.err == ""


def test_a_conversation_is_saved_forgotten_and_asked_again(folder, monkeypatch, capsys, tmp_path):
    talk = tmp_path / "talk.jsonl"
    lines = f"One?\n/save {talk}\n/reset\nOne?\n/save {talk}\n/save {talk}2\n/nosuch\n/save\n/help\n/exit\nThree?\n"
    assert from_pipe(monkeypatch, lines, folder, "--system", "S", "--temperature", "0", "--max_new_tokens", "5") == 0
    messages = json.loads(talk.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages == json.loads((tmp_path / "talk.jsonl2").read_text())["messages"]
    said = capsys.readouterr()
    for sentence in "has 3 messages", "exists; give another name", "no command /nosuch", "needs the name", "/reset  ":
        assert sentence in said.err
    assert "Three?" not in said.out


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/nowhere/x", "/"])
def test_a_name_that_no_file_can_have_does_not_end_the_chat(folder, monkeypatch, capsys, name):
    assert from_pipe(monkeypatch, f"One?\n/save {name}\n/help\n", folder, "--max_new_tokens", "3") == 0
    said = capsys.readouterr().err
    assert "; give another name\n" in said
    assert "/reset  " in said


def test_an_empty_conversation_is_not_saved(folder, monkeypatch, capsys, tmp_path):
    assert from_pipe(monkeypatch, f"/save {tmp_path}/talk\n", folder, "--system", "S") == 0
    assert capsys.readouterr().err == "there is nothing to save yet; ask a question first\n"
    assert not (tmp_path / "talk").exists()


def test_the_oldest_messages_are_forgotten_where_the_context_ends(folder):
    talk = Conversation(pyllama.load(folder), system="S")
    for number in range(9):
        talk.ask(f"Question {number}?")
        ids = talk.prompt(room=50)
        assert len(ids) <= 150
        text = bytes(ids).decode()
        assert text.startswith("system: S\nuser: ")                     # never an answer without its question
        assert text.endswith(f"user: Question {number}?\nassistant:")
        talk.answer(f"Answer {number}.")
    assert talk.forgotten > 0
    talk.ask("long " * 100)
    assert bytes(talk.prompt(room=50)).decode().endswith("long long \nassistant:")


def test_each_kind_of_model_is_asked_in_its_own_form(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say a.", "output": "a"}\n' * 12)
    tokenizer = special.byte_pairs(["Say a."], 300)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = pyllama.create("gpt2", Tokenizer.bytes(), **shape)
    tuned = pyllama.create("llama", tokenizer, **shape)
    list(pyllama.finetune(tuned, rows, "instruct", pyllama.Settings(max_steps=1, warmup_steps=0)))
    texts = []
    for model in plain, tuned:
        talk = Conversation(model)
        talk.ask("One?")
        talk.answer("1")
        talk.ask("Two?")
        texts.append(model.tokenizer.decode(talk.prompt(room=9)))
    turns = "### Instruction:\nOne?\n\n### Response:\n1{}\n\n### Instruction:\nTwo?\n\n### Response:\n"
    assert texts == [turns.format(""), "<s>" + turns.format("</s>")]


@pytest.mark.parametrize("kind", ["bert", "lstm", "bart"])
def test_a_model_that_does_not_continue_text_cannot_chat(kind):
    model = pyllama.create(kind, special.byte_pairs(["text"], 300, (special.MASK,)), hidden_size=8)
    with pytest.raises(UserError, match="does not continue text, so it cannot chat"):
        Conversation(model)


def test_several_answers_are_refused(folder, monkeypatch, capsys):
    assert from_pipe(monkeypatch, "", folder, "--num_return_sequences", "2") == 2
    assert "a chat has one answer to each question; remove num_return_sequences" in capsys.readouterr().err
    assert main(["chat", "--help"]) == main(["completion"]) == 0
    page, script = capsys.readouterr().out.split("[ -n")
    assert "num_return_sequences" not in page
    assert script.count("--num_return_sequences") == 1      # of generate


def test_a_line_that_is_not_utf8_is_refused_by_number(folder, monkeypatch, capsys):
    assert from_pipe(monkeypatch, "One?\nTwo\udcff?\n", folder, "--max_new_tokens", "3") == 2
    assert "pyllama: line 2 of standard input is not UTF-8; convert it with iconv" in capsys.readouterr().err


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, *flags):
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen([sys.executable, "-m", "pyllama", "chat", *map(str, flags)], stdin=theirs,
                                        stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.seen = ""

    def until(self, text):
        """Read until the text appears; returns what came before it."""
        while text not in self.seen:
            self.seen += os.read(self.ours, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, line):
        os.write(self.ours, line.encode(errors="surrogateescape") + b"\n")


def test_ctrl_c_at_the_prompt_says_how_to_end_the_chat(monkeypatch, capsys):
    """With an input() of our own: a signal that arrives before readline waits for a key is seen at the next key."""
    typed = iter([KeyboardInterrupt, "One?", KeyboardInterrupt, EOFError])

    def typing(prompt):
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typing)
    assert [*chat.questions(terminal=True)] == ["One?"]
    assert capsys.readouterr().err.count("Ctrl-D or /exit ends the chat") == 2


def test_neither_ctrl_c_nor_a_line_that_is_not_utf8_ends_the_chat(folder):
    terminal = Terminal(folder, "--max_new_tokens", "1000000")
    terminal.until("> ")
    terminal.type("One?")
    terminal.until("One?\r\n")
    while len(terminal.seen) < 20:                                      # it writes on and on
        terminal.seen += os.read(terminal.ours, 4096).decode(errors="replace")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until(" tokens/s, stopped]")
    terminal.until("> ")
    terminal.type("Two\udcff?")
    terminal.until("that line is not UTF-8; set the terminal to UTF-8, and ask again")
    terminal.type("/exit")
    assert terminal.process.wait() == 0
    os.close(terminal.ours)


def test_the_last_tokens_of_a_question_longer_than_the_context_are_read(folder, monkeypatch, capsys):
    assert from_pipe(monkeypatch, "x" * 500 + "\n", folder, "--temperature", "0", "--max_new_tokens", "3") == 0
    text = f"user: {'x' * 500}\nassistant:"
    answer = pyllama.load(folder).generate(text, max_new_tokens=3).removeprefix(text)
    assert np.array_equal(capsys.readouterr().out.strip(), answer.strip())
