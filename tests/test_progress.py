"""What a person sees of a run: its lines, the samples of text, the command to try."""
import itertools
import re
import shlex

import numpy as np
import pytest

from pyllama.cli import display, main
from pyllama.cli.confusion import confusion_table
from pyllama.cli.output import console
from pyllama.cli.sample import PROMPT, prompt_from
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import joined
from pyllama.training import checkpoint
from pyllama.training.loop import Evaluation, Record

TINY = ["--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--batch_size", "2", "--block_size", "8", "--warmup_iters",
        "1", "--eval_tokens", "20", "--eval_interval", "2", "--max_iters", "4"]


def lines(capsys, records, total=999_999, **options):
    [*display.follow(records, 0, total, 50, **options)]
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("perplexity", [1.0, 12.345, 999.99, 1234.5, 54321.0, 1e300])
def test_the_line_of_an_evaluation_fits_in_80_columns(perplexity, capsys):
    evaluation = Evaluation(12.3456, perplexity, 0.99, 1000)
    line, = lines(capsys, [Record(999_999, 12.3456, 1.0, 1e-3, 10 ** 6, 1e-3, evaluation)])
    assert len(line) <= 80
    assert re.fullmatch(r"step 999999  loss 12\.3456  val 12\.3456  perplexity \S+  next token 99\.0%", line)


def test_an_output_that_is_no_terminal_is_never_silent_for_long(capsys, monkeypatch):
    def records():
        return (Record(step, 1.0, 1.0, 1e-3, 10, 0.1) for step in range(1, 121))

    def steps():
        return [int(line.split()[1]) for line in lines(capsys, records())]

    assert steps() == [1, 50, 100]
    monkeypatch.setattr(display, "QUIET", -1.0)
    assert steps() == [*range(1, 121)]


def train(capsys, data, out, *flags):
    assert main(["train", "--data", str(data), "--out_dir", str(out), *TINY, *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("opening", ["First Citizen:\nBefore we", "--prompt 'it's\n", "$HOME is `here`\n",
                                     "日本語" * 20])
def test_the_command_that_a_run_names_continues_its_text(opening, tmp_path, capsys):
    data, out = tmp_path / "text.txt", tmp_path / "a run"
    data.write_text((opening + " a b c d e f g\n") * 9)
    said = train(capsys, data, out)
    name, *words = shlex.split(re.search(r"try `(.*)`$", said.strip())[1])
    assert name == "pyllama"
    assert main([*words, "--max_new_tokens", "3"]) == 0
    prompt = opening.split("\n")[0].strip()[:PROMPT]
    assert capsys.readouterr().out.startswith(prompt)


def test_a_sample_follows_each_evaluation_and_changes_nothing(tmp_path, capsys):
    data = tmp_path / "text.txt"
    data.write_text("tick\x1btock\n" * 60)
    with_samples = train(capsys, data, tmp_path / "a").splitlines()
    without = train(capsys, data, tmp_path / "b", "--sample_tokens", "0").splitlines()
    samples = [below for line, below in itertools.pairwise(with_samples) if "  val " in line]
    assert len(samples) == 2
    assert all(line.startswith("  'tick") and len(line) <= 80 and "\x1b" not in line for line in samples)
    assert len(without) == len(with_samples) - 2
    a, b = (checkpoint.load(tmp_path / name).tensors for name in "ab")
    for name, tensor in a.items():
        np.testing.assert_array_equal(tensor, b[name], err_msg=name)
    assert main(["resume", str(tmp_path / "a"), "--max_steps", "6"]) == 0
    assert "  'tick" in capsys.readouterr().out
    assert main(["train", "--data", str(data), "--sample_tokens", "-1"]) == 2


@pytest.mark.parametrize(("text", "prompt"), [
    ("First Citizen:\nBefore", "First Citizen:"), ("\n\n  a b\n", "a b"), ("a", "a"), ("x" * 30, "x" * PROMPT),
    ("The quick brown fox jumps", "The quick brown fox"), (" \n\t", ""), ("a\r\nb", "a"), ("one", "one")])
def test_a_prompt_is_the_first_words(text, prompt):
    tokenizer = Tokenizer.characters(text)
    assert prompt_from(joined([tokenizer.encode(text)]), tokenizer) == prompt


def test_a_prompt_is_of_one_document():
    tokenizer = Tokenizer.byte_pairs(["One two. Four"], 280)
    ids = tokenizer.encode("<|endoftext|>One two.<|endoftext|>Four", allowed_special="all")
    assert prompt_from(joined([ids]), tokenizer) == "One two."


def test_a_model_that_continues_no_text_has_neither(tmp_path, capsys):
    data = tmp_path / "text.txt"
    data.write_text("the quick brown fox\n" * 40)
    said = train(capsys, data, tmp_path / "run", "--model", "bert", "--tokenizer", "bpe", "--vocab_size", "300")
    assert said.strip().endswith(f"try `pyllama finetune --model {tmp_path}/run --task TASK --data FILE`")
    assert not [line for line in said.splitlines() if line.startswith("  ")]
    assert not console.is_terminal


def test_a_confusion_matrix_of_many_classes_fits_the_width(capsys, monkeypatch):
    names = [f"Instrument-Agency(e{i},e2)" for i in range(18)]
    confusion = np.eye(18, dtype=int) * 300
    confusion[0, 1:6] = [5, 40, 3, 2, 1]
    confusion[7] = 0

    def printed(names, confusion, width):
        monkeypatch.setenv("COLUMNS", str(width))
        console.print(confusion_table(names, confusion.tolist()), soft_wrap=False)
        return capsys.readouterr().out

    for width in (80, 100):
        out = printed(names, confusion, width)
        assert max(map(len, out.splitlines())) <= width
        words = " ".join(out.split())
        assert "Instrument-Agency(e0,e2) 351 1.000 0.855" in words
        assert "Instrument-Agency(e1,e2) 300 0.984 1.000" in words
        assert re.search(r"Instrument-Agency\(e7,e2\) 0 - -", words)
    joined_up = re.sub(r"\s", "", printed(names, confusion, 80))
    assert "Instrument-Agency(e2,e2)40,Instrument-Agency(e1,e2)5,Instrument-Agency(e3,e2)3,..." in joined_up
    assert re.search(r"bad +1 +2\b", printed(["bad", "good"], np.array([[1, 2], [3, 4]]), 80))
    assert "18 Instrument" in printed(names, confusion, 400)
