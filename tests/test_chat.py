"""Conversations, and rows in the columns of Alpaca and Dolly: what is read, what counts in the loss, the template."""
import json

import numpy as np
import pytest

import pyllama
from pyllama.cli.main import main
from pyllama.tasks import chat, instruct
from pyllama.tasks.rows import BadRow, Row, Source
from pyllama.text import special
from pyllama.training.examples import IGNORE
from tests.shared import SHARED, needs, written
from tests.test_instruct import TOKENS, at_work

CASES = SHARED / "cases"
TALK = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2 {}")]
TEXT = ("### System:\nBe brief.\n\n### Instruction:\nOne?\n\n### Response:\n", "1",
        "\n\n### Instruction:\nTwo?\n\n### Response:\n", "2 {}")
FORMS = {
    "messages": {"messages": [{"role": role, "content": text} for role, text in TALK]},
    "ShareGPT": {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}
                                   for role, text in TALK], "id": 3},
    "mixed": {"conversations": [{"role": role.upper(), "content": text} for role, text in TALK]},
    "parts": {"messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK]},
    "open end": {"messages": [*({"role": role, "content": text} for role, text in TALK),
                              {"role": "user", "content": "Three?"}]},
    "empty system": {"messages": [{"role": "system", "content": ""}, *({"role": r, "content": t} for r, t in TALK)]},
    "ultrachat": {"prompt": "One?", "messages": [{"role": role, "content": text} for role, text in TALK]},
}


@pytest.fixture(params=FORMS)
def talk(request, tmp_path):
    path = written(tmp_path / "a.jsonl", json.dumps(FORMS[request.param]))
    (row,), _ = instruct.task.read(Source(path))
    name = next(name for name in chat.KEYS if name in FORMS[request.param])
    assert instruct.task.read(Source(path, (name,)))[0] == [row]            # also when it is named
    return row


def test_the_responses_of_a_conversation_count_and_nothing_else(talk):
    """Each with an end token behind it."""
    made, = instruct.examples([talk], at_work(max_length=300)).rows
    ids, labels = [special.BOS], [IGNORE]
    for text, answers in zip(TEXT, (False, True, False, True), strict=True):
        tokens = [*TOKENS.encode(text), *([special.EOS] if answers else [])]
        ids += tokens
        labels += tokens if answers else [IGNORE] * len(tokens)
    assert made["ids"].tolist() == ids
    assert made["labels"].tolist() == labels


def test_a_conversation_is_asked_without_its_last_response(tmp_path):
    third = "\n\n### Instruction:\nThree?\n\n### Response:\n"
    for form, asked in (("messages", TEXT[:3]), ("open end", (*TEXT, third))):
        path = written(tmp_path / "a.jsonl", json.dumps(FORMS[form]))
        (row,), _ = instruct.task.read(Source(path), answer=False)
        assert instruct.prompt(row.values) == "".join(asked)
        assert row.given == FORMS[form]


def test_of_a_long_conversation_the_first_responses_are_learned(tmp_path):
    row = Row("", instruct.usable(chat.unpacked(FORMS["messages"])))
    room = 1 + len(TOKENS.encode(TEXT[0] + TEXT[1]))
    assert instruct.fits([row], at_work(max_length=room)) == [True]
    made, = instruct.examples([row], at_work(max_length=room)).rows
    assert (made["labels"] != IGNORE).sum() == 1
    assert instruct.fits([row], at_work(max_length=room - 1)) == [False]
    assert instruct.predict([row], at_work(max_length=room)) == [""]


@pytest.mark.parametrize(("messages", "reason"), [
    ([{"role": "tool", "content": "x"}], "the role of a message is 'tool', not system, user or assistant"),
    ([{"content": "x"}], "the role of a message is None"),
    (["x"], "the message 'x' is not an object"),
    ([{"role": "user", "content": None}], "'content' is None, not a text"),
    ([{"role": "assistant", "content": " "}], "'content' is empty"),
    ([{"role": "user", "content": "x"}], "no message is the assistant's, so there is no response to learn"),
    ([], "no message is the assistant's"),
])
def test_a_conversation_that_cannot_be_learned_is_a_bad_row(messages, reason):
    with pytest.raises(BadRow, match=reason):
        instruct.usable(chat.unpacked({"messages": messages}))


def test_a_run_keeps_its_template_and_is_asked_in_it(tmp_path, monkeypatch):
    data = written(tmp_path / "a.jsonl", "\n".join(json.dumps(FORMS["messages"]) for _ in range(20)))
    model = pyllama.create("llama", "python-docs", tokenizer="bpe", vocab_size=300, hidden_size=8)
    settings = pyllama.Settings(max_steps=1, batch_size=2, shards=1)
    for _ in pyllama.finetune(model, data, "instruct", settings):
        pass
    assert model.config.extra["task"]["template"] == chat.TEMPLATE
    own = {**chat.TEMPLATE, "response": "### Say:\n"}
    model.config.extra["task"]["template"] = own
    asked = []
    monkeypatch.setattr(instruct, "generate", lambda p, c, prompts, tokenizer, settings: asked.extend(prompts) or [
        type("Result", (), {"text": "yes"}) for _ in prompts])
    assert pyllama.predict(model, {"messages": [{"role": "user", "content": "One?"}]}) == "yes"
    assert model.tokenizer.decode(asked[0], skip_special_tokens=True) == "### Instruction:\nOne?\n\n### Say:\n"


@needs(CASES)
@pytest.mark.parametrize("fields", [(), ("instruction", "response"), ("instruction", "context", "response")])
def test_the_context_of_dolly_is_read(fields):
    found, notes = instruct.task.read(Source(CASES / "dolly.jsonl", fields))
    assert found[0].values == {"instruction": "Name the animal.", "input": "It is a cat.", "output": "cat"}
    assert notes == tuple(f"the field {theirs!r} is read as {ours!r}" for theirs, ours in
                          (("context", "input"), ("response", "output"))[:2 - len(fields) if len(fields) < 3 else 0]
                          ) or fields


def test_a_conversation_is_learned_by_heart(tmp_path, capsys):
    """The second answer depends on the turns before."""
    rows = [{"messages": [{"role": "user", "content": f"I am {name}"}, {"role": "assistant", "content": "Hi"},
                          {"role": "user", "content": "Who?"}, {"role": "assistant", "content": name}]}
            for name in ("Ann", "Bob")] * 4
    data = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert main(["finetune", "--task", "instruct", "--model", "llama", "--data", str(data), "--out_dir",
                 str(tmp_path / "run"), "--epochs", "140", "--vocab_size", "320", "--batch_size", "6", "--dev", "0.2",
                 "--shards", "1", "--eval_steps", "140", "--learning_rate", "0.005", "--resid_pdrop", "0"]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["exact_match"] == 1
    capsys.readouterr()
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(data)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["messages"], row["predicted"]) for row in answers] == [
        (row["messages"], row["messages"][-1]["content"]) for row in rows]
    assert pyllama.predict(tmp_path / "run", rows[0])[:3] == "Ann"
    assert np.isfinite(json.loads((tmp_path / "run/metrics.json").read_text())["perplexity"])
