"""Instructions: what is learned of a prompt and its response, the answers, and the lists of models and tasks."""
import json
import math
import re

import numpy as np
import pytest

from pyllama import params, rng
from pyllama.cli import overview
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.generation import SearchConfig
from pyllama.models import MODELS, bart, bert, gpt2
from pyllama.models.config import Dimensions
from pyllama.ops import cross_entropy
from pyllama.quantization import decoded_tree, encoded_tree
from pyllama.tasks import TASKS, instruct
from pyllama.tasks.finetune import Setup
from pyllama.tasks.rows import BadRow, Row
from pyllama.tasks.task import Trained
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.examples import IGNORE
from pyllama.training.loop import Settings
from tests.extras import needs_rouge, needs_sacrebleu

ROWS = [{"instruction": "Add.", "input": "2 and 3", "output": "5"},
        {"instruction": "说你好。", "output": "你好"},
        {"instruction": "Say nothing of note.", "output": "a b c d e"}]
TOKENS = special.byte_pairs([], 259)                        # the special tokens and the bytes


def at_work(arch="llama", max_length=128):
    config = MODELS[arch].config.small(Dimensions(vocab_size=TOKENS.vocab_size, context=max_length, head="lm",
                                                  dropout=0.0))
    return Trained(config, config.model.init(config, seed=3, dtype="float64"), TOKENS, max_length)


def rows_of(values):
    return [Row(str(i), instruct.usable(one)) for i, one in enumerate(values)]


def test_a_prompt_has_an_input_where_there_is_one():
    with_input, without, _ = (instruct.prompt(row.values) for row in rows_of(ROWS))
    assert with_input == "### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:\n"
    assert without == "### Instruction:\n说你好。\n\n### Response:\n"
    for blank in ("", " \n", None):
        assert instruct.prompt(instruct.usable({**ROWS[1], "input": blank})) == without


@pytest.mark.parametrize(("change", "message"), [
    ({"input": 5}, "'input' is 5, not a text"), ({"output": " "}, "'output' is empty"),
    ({"instruction": ["x"]}, r"'instruction' is \['x'\], not a text")])
def test_a_value_that_is_not_text_is_a_bad_row(change, message):
    with pytest.raises(BadRow, match=message):
        instruct.usable({**ROWS[0], **change})


def test_the_response_and_its_end_are_learned_and_nothing_else():
    for made, row in zip(instruct.examples(rows_of(ROWS), at_work()).rows, rows_of(ROWS), strict=True):
        before = [special.BOS, *TOKENS.encode(instruct.prompt(row.values))]
        response = [*TOKENS.encode(row.values["output"]), special.EOS]
        assert made["ids"].tolist() == before + response
        assert made["labels"].tolist() == [IGNORE] * len(before) + response


def test_what_is_too_long_loses_its_end_and_what_has_no_room_is_left_out(capsys):
    lengths = [len(instruct.prompt(row.values).encode()) + 1 for row in rows_of(ROWS)]
    assert lengths == [58, 46, 54]
    work = at_work(max_length=56)
    assert instruct.fits(rows_of(ROWS), work) == [False, True, True]
    made = instruct.examples(rows_of(ROWS), work).rows
    assert capsys.readouterr() == ("", "")
    assert [row["labels"][row["labels"] != IGNORE].tolist() for row in made] == [
        [*TOKENS.encode("你好"), special.EOS], TOKENS.encode("a ").tolist()]
    answers = instruct.predict(rows_of(ROWS), work)
    note, = instruct.notes(rows_of(ROWS), work, SearchConfig())
    assert note.startswith("1 of 3 prompts are not answered: they leave no room for a response in the 56 tokens that")
    assert capsys.readouterr() == ("", "")
    assert answers[0] == ""
    assert all(answers[1:])
    for most, fit in ((46, False), (47, True)):                     # one token more is room for one token
        assert instruct.fits(rows_of(ROWS[1:2]), at_work(max_length=most)) == [fit]
        assert len(instruct.examples(rows_of(ROWS[1:2]), at_work(max_length=most))) == fit


def test_without_an_end_token_no_response_would_end():
    work = at_work()
    work = work._replace(tokenizer=Tokenizer.bytes(), config=type(work.config)(vocab_size=256))
    with pytest.raises(UserError, match="no end token, so no response would end; use a model with"):
        instruct.examples(rows_of(ROWS), work)


@pytest.mark.parametrize("arch", instruct.task.models())
def test_the_scores_of_a_prompt_have_exactly_no_gradient(arch):
    """The loss is the cross-entropy of the scores with these labels, and there the rows that do not count are 0."""
    _, p, *_ = work = at_work(arch)
    c, inputs = work.config, next(instruct.examples(rows_of(ROWS), work).in_turn(3))[1].inputs
    target = inputs["labels"][:, 1:]
    z, logits_back = c.model.logits(inputs["ids"][:, :-1], p, c, mask=inputs["mask"][:, :-1])
    value, loss_back = cross_entropy(z.reshape(-1, z.shape[-1]), target.reshape(-1))
    dz = loss_back(1.0)[0].reshape(z.shape)
    assert (dz[target == IGNORE] == 0).all()
    assert (dz[target != IGNORE] != 0).all()
    assert (target != IGNORE).sum(axis=1).tolist() == [2, 7, 10]

    loss, back = c.model.loss(**inputs, p=p, c=c)
    assert loss == pytest.approx(float(value), rel=1e-12)
    wanted = dict(params.leaves(logits_back(dz)))
    for name, grad in params.leaves(back()):
        np.testing.assert_allclose(grad, wanted[name], rtol=0, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("arch", instruct.task.models())
def test_what_a_row_learns_is_its_responses_alone_bit_for_bit(arch):
    """Where no label of a row counts, its tokens change no bit of the loss and of the gradient."""
    work = at_work(arch)
    inputs = next(instruct.examples(rows_of(ROWS), work).in_turn(3))[1].inputs
    inputs["labels"][1] = IGNORE
    found = []
    for other in (5, 77):                                   # another prompt in that row
        inputs["ids"] = inputs["ids"].copy()
        inputs["ids"][1] = other
        loss, back = work.config.model.loss(**inputs, p=work.params, c=work.config)
        found.append([loss, *(grad for _, grad in params.leaves(back()))])
    for one, another in zip(*found, strict=True):
        np.testing.assert_array_equal(one, another)


@needs_rouge
def test_answers_are_measured_by_words_and_chinese_characters():
    rows = [Row("", {"output": "今天很好"}), Row("", {"output": "the old man"})]
    assert instruct.metrics(["今天好", "the old man"], rows) == {
        "exact_match": 0.5, "rougeL": pytest.approx((6 / 7 + 1) / 2), "rows": 2,     # 3 of 3 and 3 of 4 characters
        "variant": "rouge-score's rougeL (not rougeLsum), use_stemmer=False, F-measure, mean over rows; characters of "
                   "scripts without spaces"}


def test_perplexity_is_of_a_token_of_the_responses(monkeypatch):
    """Whatever batches they come in: the rows have responses of 2, 7 and 10 tokens."""
    work = at_work()
    found = instruct.perplexity(rows_of(ROWS), work)["perplexity"]
    losses = [math.log(instruct.perplexity(rows_of([one]), work)["perplexity"]) for one in ROWS]
    assert math.log(found) == pytest.approx(np.average(losses, weights=[2, 7, 10]))
    monkeypatch.setattr(instruct, "AT_ONCE", 2)
    assert instruct.perplexity(rows_of(ROWS), work)["perplexity"] == pytest.approx(found)


def test_perplexity_reads_matrices_that_a_run_in_bfloat16_writes_with():
    model = at_work()
    stored = encoded_tree(model.params, "bf16", model.config)
    found, expected = (instruct.perplexity(rows_of(ROWS), model._replace(params=p))
                       for p in (stored, decoded_tree(stored)))
    assert found == expected


CAPITALS = {"France": "Paris", "Spain": "Madrid", "中国": "北京"}
FLAGS = ["--vocab_size", "400", "--batch_size", "8", "--shards", "1", "--learning_rate", "0.004", "--warmup_steps", "5",
         "--eval_steps", "62", "--resid_pdrop", "0"]


@pytest.fixture
def capitals(tmp_path):
    rows = [{"instruction": "Capital?", "input": country, "output": city} for country, city in CAPITALS.items()]
    lines = map(json.dumps, [*rows, {"instruction": "Bye", "output": "So\nlong!"}] * 6)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


@needs_rouge
@pytest.mark.parametrize("model", instruct.task.models())
def test_every_decoder_learns_to_answer(model, capitals, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["finetune", "--task", "instruct", "--model", model, "--data", str(capitals), "--out_dir", str(run),
                 "--num_train_epochs", "35", *FLAGS]) == 0
    assert checkpoint.load(run).step == 97                  # 35 times 22 rows, 8 a step
    assert len(Tokenizer.load(checkpoint.load(run).tokenizer_path).encode("### Response:\n")) < 5      # it was learned
    assert f"try `pyllama chat {run}`" in capsys.readouterr().out.replace("\n", "")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["exact_match"] == metrics["rougeL"] == 1
    log = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    best = min(line["val_loss"] for line in log if "val_loss" in line)
    assert metrics["perplexity"] == pytest.approx(math.exp(best), rel=1e-4)
    assert main(["predict", "--model", str(run), "--text", "Bye", "--num_beams", "2"]) == 0
    assert capsys.readouterr() == ("So\nlong!\n", "")
    (tmp_path / "ask.jsonl").write_text(capitals.read_text().replace("output", "ignored"))
    assert main(["predict", "--model", str(run), "--data", str(tmp_path / "ask.jsonl")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = [json.loads(line) for line in (tmp_path / "ask.jsonl").read_text().splitlines()]
    assert answers == [{**row, "predicted": row["ignored"]} for row in asked]
    assert main(["predict", "--model", str(run), "--text", "Bye", "--max_new_tokens", "2"]) == 0
    assert len(capsys.readouterr().out) < len("So\nlong!\n")
    for data, measured in (("rows.txt", "nats per token"), ("rows.jsonl", "exact_match")):
        (tmp_path / "rows.txt").write_text(capitals.read_text())
        assert main(["evaluate", "--model", str(run), "--data", str(tmp_path / data)]) == 0
        assert measured in capsys.readouterr().out


def test_epochs_count_all_that_a_step_learns_from():
    settings = Settings(batch_size=8, gradient_accumulation_steps=2, max_steps=7)
    assert Setup("llama", epochs=2).planned(settings, 22).max_steps == 3            # 44 by 16
    assert Setup("llama").planned(settings, 22).max_steps == 7


def test_no_epoch_is_refused(capitals, tmp_path, capsys):
    assert main(["finetune", "--task", "instruct", "--model", "llama", "--data", str(capitals), "--epochs", "0",
                 "--out_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "pyllama: epochs is 0; it must be at least 1\n"


# The lists

def test_models_and_tasks_name_all_there_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["models"]) == 0
    models = capsys.readouterr().out
    assert main(["tasks"]) == 0
    tasks = capsys.readouterr().out
    for kind, (_, configuration) in MODELS.items():
        assert re.search(rf"^{kind} ", models, re.MULTILINE)
        assert all(head in models for head in configuration.HEADS)
    for name, task in TASKS.items():
        assert re.search(rf"^{name} ", tasks, re.MULTILINE)
        assert all(word in tasks for word in (*task.fields, *task.models(), *task.metric_names)), name
        assert task.metric_names, name
    assert "(input)" in tasks
    assert "124,439,808" in models


@needs_rouge
@needs_sacrebleu
@pytest.mark.parametrize("name", ["classify", "translate", "g2p", "summarize", "write", "instruct"])
def test_the_measures_that_are_listed_are_taken(name):
    task = TASKS[name]
    taken = {*task.metrics(["a b"], [Row("", dict.fromkeys(task.fields, "a b"))])}
    assert {*task.metric_names} <= taken | ({"perplexity"} if name == "instruct" else set())


def test_parameters_are_counted_without_being_made():
    for config, count in ((gpt2.GPT2Config(), 124439808), (bert.BertConfig(), 109514298),
                          (bart.BartConfig(), 406291456 + 50265)):
        assert overview.parameters(config) == count         # as published, but for BART's bias of the scores
    for kind, family in MODELS.items():
        config = overview.small(family.config)
        assert overview.parameters(config) == sum(a.size for _, a in params.leaves(config.model.init(config))), kind
    assert isinstance(rng.generator(1).random(), float)


def test_a_family_is_offered_for_the_tasks_that_need_one_of_its_heads(monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "new", MODELS["gpt2"])
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    _, _, new = listed.partition("\nnew ")
    assert [line.strip() for line in new.splitlines()[1:3]] == ["heads lm", "tasks instruct"]
    assert main(["tasks"]) == 0
    assert "new" in capsys.readouterr().out
