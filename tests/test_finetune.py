"""finetune with early stopping, event files and rows that do not fit; what predict prints beside its answers."""
import json
import re
from dataclasses import replace

import pytest

import pyllama
from pyllama.cli import tasks as commands
from pyllama.cli.main import main
from pyllama.tasks import TASKS, finetune
from pyllama.training import checkpoint
from pyllama.training.log import read_log
from tests.shared import written

SMALL = ["--vocab_size", "300", "--batch_size", "8", "--shards", "1", "--learning_rate", "0.005", "--warmup_steps", "5"]


@pytest.fixture
def films(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text("text,label\n" + "".join(f"a {word} film,{label}\n" for label, words in
                                             (("good", "fine great lovely warm"), ("bad", "dull loud cold grim"))
                                             for word in words.split() for _ in range(10)))
    return path


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcdef" for b in "abcdef"))
    return path


def trained(task, model, data, run, *flags):
    assert main(["finetune", "--task", task, "--model", model, "--data", str(data), "--out_dir", str(run), *SMALL,
                 *map(str, flags)]) == 0
    return json.loads((run / "metrics.json").read_text())


def test_a_run_out_of_patience_is_measured_at_its_best_and_stays_out_of_patience(films, tmp_path, capsys):
    """The accuracy is soon as high as it gets, and then no evaluation is better."""
    run = tmp_path / "run"
    metrics = trained("classify", "lstm", films, run, "--max_steps", 200, "--eval_steps", 4, "--patience", 3)
    out, log = capsys.readouterr().out, read_log(run)
    accuracies = {line["step"]: line["val_accuracy"] for line in log if "val_accuracy" in line}
    best = next(step for step, accuracy in accuracies.items() if accuracy == max(accuracies.values()))
    assert [*accuracies] == [*range(4, best + 3 * 4 + 1, 4)]
    reason = f"stopped early at step {best + 12}: 3 evaluations without improvement since step {best}\n"
    assert reason in out
    assert (metrics["step"], metrics["accuracy"]) == (best, accuracies[best])
    assert checkpoint.best(run).name == f"step-{best:08d}"
    assert f"at step {best}, the best checkpoint on the dev rows" in out

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for flags in ([], ["--max_steps", "400"]):
        assert main(["resume", str(run), *flags]) == 0
        assert reason in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_patience_without_accuracy_looks_at_the_loss(words, tmp_path, capsys):
    """At a learning rate that only harms, the first evaluation stays the best."""
    run = tmp_path / "run"
    metrics = trained("g2p", "transformer", words, run, "--max_steps", 99, "--eval_steps", 1, "--patience", 2,
                      "--learning_rate", 3, "--optimizer", "sgd", "--schedule", "constant", "--warmup_steps", 0,
                      "--max_new_tokens", 4)
    losses = [line["val_loss"] for line in read_log(run)]
    best = losses.index(min(losses)) + 1
    assert (len(losses), metrics["step"]) == (best + 2, best)
    assert f"stopped early at step {best + 2}: 2 evaluations without improvement" in capsys.readouterr().out


def test_a_model_of_the_task_summarise_is_one_of_summarize(tmp_path):
    """The task had this name in 0.1.0."""
    model = pyllama.create("transformer", "python-docs", tokenizer="bpe", vocab_size=300, hidden_size=8)
    entry = {"name": "summarise", "fields": [], "max_length": 16, "class_weights": None}
    model.config = replace(model.config, extra={"task": entry})
    model.save(tmp_path / "model")
    task, _, _ = finetune.load(tmp_path / "model")
    assert task is TASKS["summarize"]


def events(folder):
    """{name: {step: value}} of event files: records of length (8 bytes), checksum (4), protobuf, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event
    raw, found = b"".join(path.read_bytes() for path in sorted(folder.iterdir())), {}
    while raw:
        size = int.from_bytes(raw[:8], "little")
        event = Event.FromString(raw[12:12 + size])
        raw = raw[12 + size + 4:]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@pytest.mark.parametrize(("task", "model"), [("classify", "lstm"), ("g2p", "transformer")])
def test_event_files_hold_what_the_log_does(task, model, request, tmp_path):
    """The accuracy where it was taken; also what a resumed run adds."""
    pytest.importorskip("tensorboardX", reason="the extra 'tensorboard' is not installed")
    data = request.getfixturevalue({"classify": "films", "g2p": "words"}[task])
    trained(task, model, data, tmp_path / "run", "--max_steps", 5, "--eval_steps", 2, "--tensorboard",
            "--max_new_tokens", 4)
    assert main(["resume", str(tmp_path / "run"), "--max_steps", "6"]) == 0
    due = {}
    for line in read_log(tmp_path / "run"):
        for name, value in line.items():
            if name != "step" and value is not None:
                due.setdefault(name, {})[line["step"]] = pytest.approx(value, rel=1e-6)         # kept as float32
    found = events(tmp_path / "run/tensorboard")
    assert found == due
    assert [*found["val_loss"]] == [2, 4, 5, 6]
    assert ("val_accuracy" in found) == (task == "classify")


# Rows without room

def instructions(path, *asked):
    path.write_text("".join(json.dumps({"instruction": one, "output": "yes"}) + "\n" for one in asked))
    return path


def test_rows_that_do_not_fit_are_reported_once_and_do_not_count(tmp_path, capsys):
    run, long = tmp_path / "run", " ".join(map(str, range(99)))
    data = instructions(tmp_path / "a.jsonl", *["Go?"] * 20, *[long] * 4)
    metrics = trained("instruct", "llama", data, run, "--max_steps", 1, "--test", 0.2, "--max_length", 80)
    out, err = capsys.readouterr()
    assert (out + err).count("no room") == 1
    assert "4 of 24 rows skipped: they leave no room for an answer in max_length, 80 tokens\n" in out
    counted = re.search(r"(\d+) training rows, (\d+) validation rows, (\d+) test rows", out).groups()
    assert sum(map(int, counted)) == 20
    assert metrics["rows"] == int(counted[2])

    trained("instruct", str(run), data, tmp_path / "more", "--max_steps", 1, "--max_length", 500)
    assert "4 of 24 rows skipped: they leave no room for an answer in the model's context, 80 tokens\n" in \
        capsys.readouterr().out
    assert main(["evaluate", "--model", str(run), "--data", str(data), "--max_new_tokens", "2"]) == 0
    out, err = capsys.readouterr()
    assert (out + err).count("no room") == 1
    assert "4 of 24 rows skipped: they leave no room for an answer in the 80 tokens that the model was" in out
    assert re.search(r"^rows +20$", out, re.MULTILINE)

    assert main(["predict", "--model", str(run), "--text", "Go?", long, "--max_new_tokens", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == ""
    assert err == ("1 of 2 prompts are not answered: they leave no room for a response in the 80 tokens that the model "
                   "was trained to read\n")


def test_a_part_without_a_row_that_fits_is_refused(tmp_path, capsys):
    data = instructions(tmp_path / "a.jsonl", *["Go?"] * 20)
    assert main(["finetune", "--task", "instruct", "--model", "gpt2", "--data", str(data), "--max_length", "5",
                 "--out_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == ("pyllama: no train row leaves room for an answer in max_length, 5 tokens; "
                                       "shorten the rows or raise the limit\n")
    assert not (tmp_path / "run").exists()


# Texts without room

@pytest.mark.parametrize(("task", "model", "row", "needed"), [
    ("classify", "lstm", {"text": "{}", "label": "{i}"}, 42),
    ("relations", "lstm", {"text": "<e1>a</e1> <e2>b</e2> {}", "relation": "{i}"}, 50),
    ("g2p", "transformer", {"source": "a", "target": "{}"}, 42),
    ("qa", "bert", {"context": "{}", "question": "a", "answer": "x"}, None),      # in windows
    ("qa", "bert", {"context": "x", "question": "{}", "answer": "x"}, 83),
    ("instruct", "gpt2", {"instruction": "a", "output": "{}"}, 76)])
def test_texts_that_are_truncated_are_counted(task, model, row, needed, tmp_path, capsys):
    """In 3 of 24 rows 40 characters, which are as many tokens; with their edges they need 42, a question twice 40."""
    lines = [json.dumps({name: value.format("x" * (40 if i < 3 else 4), i=i % 2) for name, value in row.items()})
             for i in range(24)]
    data = written(tmp_path / "a.jsonl", "\n".join(lines))
    least = "60" if task == "instruct" else "30"
    trained(task, model, data, tmp_path / "run", "--max_steps", 1, "--max_length", least, "--vocab_size",
            263 if task == "relations" else 259, "--max_new_tokens", 2)
    note = f"texts are truncated at {{}} in 3 of 24 rows; none would be at {needed}\n"
    learned = note.format(f"the {least} tokens that the model was trained to read")
    assert (note.format(f"max_length, {least} tokens") in capsys.readouterr().out) == (needed is not None)
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--data", str(data), "--max_new_tokens", "2"]) == 0
    assert (learned in capsys.readouterr().out) == (needed is not None)
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(data), "--max_new_tokens", "2"]) == 0
    asked = needed if "output" not in row and row.get("target") != "{}" else None
    assert (learned in capsys.readouterr().err) == (asked is not None)


def test_dropouts_that_training_does_not_apply_are_noted(films, tmp_path, capsys):
    trained("classify", "bert", films, tmp_path / "run", "--max_steps", 1)
    model = pyllama.load(tmp_path / "run")
    model.config = replace(model.config, extra={**model.config.extra, "attention_probs_dropout_prob": 0.1,
                                                "classifier_dropout": None, "layerdrop": 0.0})
    model.save(tmp_path / "model")
    capsys.readouterr()
    trained("classify", str(tmp_path / "model"), films, tmp_path / "more", "--max_steps", 1)
    assert "dropouts of the model that training does not apply: attention_probs_dropout_prob 0.1\n" in \
        capsys.readouterr().out


# Beside the answers

def test_notes_do_not_stand_among_the_answers(films, tmp_path, capsys, monkeypatch):
    trained("classify", "lstm", films, tmp_path / "run", "--max_steps", 1)
    found = finetune.load(tmp_path / "run")
    monkeypatch.setattr(commands.tuning, "load", lambda path, **_: (*found[:2], ("a note",)))
    capsys.readouterr()
    assert main(["predict", "--model", str(tmp_path / "run"), "--text", "a fine film"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() in ("good", "bad")
    assert err == "a note\n"


def test_predict_reads_other_columns_and_leaves_out_what_it_cannot_read(films, tmp_path, capsys):
    """The answer's column may be named or not; what is left out is told beside the answers, not among them."""
    run, others = tmp_path / "run", tmp_path / "others.csv"
    trained("classify", "lstm", films, run, "--max_steps", 4, "--eval_steps", 4)
    others.write_text("review,stars\na fine film,\n  ,5\na cold film,1\n")
    flags = ["predict", "--model", str(run), "--data", str(others)]
    capsys.readouterr()
    assert main([*flags, "--fields", "review"]) == 2
    assert "others.csv line 3: 'text' is empty; fix it, or set bad_rows to skip" in \
        capsys.readouterr().err
    for fields in (["review"], ["review", "stars"]):
        assert main([*flags, "--fields", *fields, "--bad-rows", "skip"]) == 0
        said = capsys.readouterr()
        assert [json.loads(line)["review"] for line in said.out.splitlines()] == ["a fine film", "a cold film"]
        assert "1 of 3 rows skipped:" in said.err


def test_evaluate_of_a_task_refuses_the_flags_for_texts(films, tmp_path, capsys):
    """`eval` is the same command."""
    trained("classify", "lstm", films, tmp_path / "run", "--max_steps", 1)
    command = ["eval", "--model", str(tmp_path / "run"), "--data", str(films)]
    for name, value in (("field", "body"), ("block_size", "8"), ("tokenizer", "t.json")):
        capsys.readouterr()
        assert main([*command, f"--{name}", value]) == 2
        reason = f"{name} has no effect on a model that was trained on a task"
        assert capsys.readouterr().err == f"pyllama: {reason}; remove it\n"
    assert main([*command, str(films)]) == 2
    assert "on one file of rows, but data names 2" in capsys.readouterr().err
    assert main(command) == 0
    assert "accuracy" in capsys.readouterr().out
