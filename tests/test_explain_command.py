"""The backward explorer: its page, its command, and what they refuse."""
import json
import re
import shutil

import numpy as np
import pytest

import pyllama
from pyllama.cli import main
from pyllama.errors import UserError
from pyllama.study.explain import page
from pyllama.study.explain.document import ROOM, rooms
from pyllama.study.explain.recording import record
from pyllama.study.explain.rows import Given
from pyllama.study.explain.subject import load
from pyllama.tasks import TASKS
from tests.explained import SENTENCE, SMALL, TEXT, Models, small_run
from tests.shared import written


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return written(tmp_path_factory.mktemp("text") / "text.txt", TEXT)


def test_a_page_takes_at_most_five_megabytes(run, monkeypatch):
    subject = load(run, SENTENCE)
    recording = record(subject.loss, subject.state.p)
    assert [*rooms(recording, 10 ** 9)] == [*ROOM]
    assert next(rooms(recording, 0)) == ROOM[-1]
    whole = page.explained(run, SENTENCE)
    monkeypatch.setattr(page, "LIMIT", 2 * len(whole) // 3)
    assert len(page.explained(run, SENTENCE)) <= 2 * len(whole) // 3
    monkeypatch.setattr(page, "LIMIT", 1000)
    with pytest.raises(UserError, match="smaller model or a shorter text"):
        page.explained(run, SENTENCE)


def test_the_page_needs_nothing_but_itself_and_a_text_cannot_end_its_data(text, tmp_path):
    model = pyllama.create("llama", text, tokenizer="byte", **SMALL)
    model.save(tmp_path)
    html = page.explained(tmp_path, "</script>/*program*/").decode()
    assert set(re.findall(r"https?://[^\s\"'<]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<link|<img|\bimport\b\s*\(|\bsrc=|@import|fetch\(", html)
    data = re.search(r'<script type="application/json" id="document">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(data)["given"]["text"] == "</script>/*program*/"


def test_the_command_writes_the_page_of_a_step(run, tmp_path, capsys):
    for step in 2, 4:
        out = tmp_path / f"{step}.html"
        assert main(["explain", str(run), "--text", "the cat", "--step", str(step), "--out", str(out)]) == 0
        assert f'"step":{step},"resumed":true' in out.read_text("utf-8")
    assert main(["explain", str(run), "--text", "the cat", "--out", str(tmp_path / "latest.html")]) == 0
    assert (tmp_path / "latest.html").read_bytes() == (tmp_path / "4.html").read_bytes()
    capsys.readouterr()


@pytest.mark.parametrize(("arguments", "message"), [
    (["RUN/absent", "--text", "the cat"], "there is no model at .*absent; give a run"),
    (["RUN", "--text", "the cat", "--step", "3"], r".*tiny has no checkpoint of step 3; it has those of 2, 4"),
    (["RUN/checkpoints/step-00000004", "--text", "the cat", "--step", "4"], "step is 4, but .* is not a run; give"),
    (["RUN", "--text", "t"], "the text has 1 token; give one of at least 2"),
    (["RUN", "--text", "the cat sat on the mat; " * 3], "the text has 72 tokens, but the model sees only 32 .*shorten"),
    (["RUN", "--text", "THE CAT"], ".*'T'.*"),
    (["RUN", "--text", "the cat", "--nudge", "lm_head"], r"nudge is 'lm_head'; write NAME\[i,j\], such as model.emb"),
    (["RUN", "--text", "the cat", "--nudge", "head[0,0]"], "nudge names 'head', which is not a parameter; give one"),
    (["RUN", "--text", "the cat", "--nudge", "lm_head.weight[0,8]"], r"nudge is .*, but lm_head.weight has the shap"),
    (["RUN", "--text", "the cat", "--out", "RUN/absent/page.html"], "--out is .*, which cannot be a file; name a file"),
    (["RUN", "--text", "the cat", "--out", "RUN.pdf"], r"--out is .*\.pdf, but the page is HTML; give a name such as"),
])
def test_a_mistake_is_one_sentence_and_leaves_no_file(run, tmp_path, capsys, arguments, message):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "page.html")]
    assert main(["explain", *(word.replace("RUN", str(run)) for word in arguments), *out]) == 2
    said = capsys.readouterr().err
    assert re.match(message, said.removeprefix("pyllama: ").removeprefix("error: ")), said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("task", "given", "message"), [
    ("classify", Given("a fine film"), "the loss of the task classify needs the label of the text; set label to one of "
                                       "no, yes"),
    ("classify", Given("a fine film", label="maybe"), "the text has the label 'maybe', but the model has the classes "
                                                      "no, yes; give their names"),
    ("classify", Given("a fine film", target="yes"), "the model was trained on the task classify, which has no target; "
                                                     "remove it"),
    ("classify", Given(" \n", label="yes"), "the text is empty; give one"),
    ("relations", Given("a <e1>cat</e1> and <e2>I</e2>", label="Owns"), "label has 'Owns', but the model has Cause-Effe"
                                                                      r"ct\(e2,e1\), Other; give one of these"),
    ("relations", Given("a cat and I", label="Other"), "the row is invalid: .* does not contain one marked entity"),
    ("relations", Given("a <e1>cat</e1>", "and", label="Other"), "the model was trained on the task relations, which "
                                                                 "has no text_pair; remove it"),
    ("tag", Given("Ann Lee"), "the loss of the task tag needs the tags of the text; set label to the tag of each word, "
                              "between spaces: O, B-LOC, I-LOC, B-PER, I-PER"),
    ("tag", Given("Ann Lee", label="B-PER"), r"the text has 2 words \(Ann, Lee\), but label has 1 tag; give one for"),
    ("tag", Given("Ann Lee", label="B-PER I-ORG"), "label has 'I-ORG', but the model has O, B-LOC, I-LOC, B-PER, "),
    ("tag", Given(" ".join(["cat"] * 40), label=" ".join(["O"] * 40)), "the text takes .* windows of 32 tokens, but a "
                                                                       "page explains a single one; shorten it"),
    ("regress", Given("a film"), "the loss of the task regress needs the label of the text; set label to a number"),
    ("regress", Given("a film", label="good"), "the row is invalid: 'label' is 'good', not a number; fix it"),
    ("g2p", Given("cat"), "the loss of the task g2p needs the target of the text; set target to a text"),
    ("g2p", Given("cat", label="K"), "the model was trained on the task g2p, which has no label; remove it"),
    ("qa", Given("the cat sat", target="cat"), "the task qa reads context and question; set text_pair to the question"),
    ("qa", Given("the cat sat", "who sat", target="a dog"), "the row is invalid: the answer 'a dog' does not occur in"),
    ("instruct", Given("plural", label="cats"), "the model learns from plain text, which has no label; remove it"),
    ("instruct", Given("say " * 200, target="hi"), "the text leaves no room for an answer in the 96 tokens that the "),
])
def test_a_row_that_does_not_fit_the_task_is_refused(models, task, given, message):
    folder, *_ = models.folder((task, TASKS[task].models()[0]))
    with pytest.raises(UserError, match=message):
        load(folder, given)


def test_a_long_text_is_truncated_as_in_training_and_a_note_says_so(models):
    folder, given, _ = models.folder(("classify", "bert"))
    subject = load(folder, given._replace(text="a fine film " * 40, text_pair=None))
    assert subject.inputs["ids"].shape == (1, 32)
    assert re.match(r"the text has \d+ tokens and is truncated at the 32 tokens that the model was trained to read",
                    subject.notes[-1])
    assert not load(folder, given).notes


def test_a_model_of_independent_classes_is_refused(models, tmp_path):
    folder, *_ = models.folder(("classify", "bert"))
    shutil.copytree(folder, tmp_path / "model")
    stored = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    written(tmp_path / "model/config.json", json.dumps(stored | {"problem_type": "multi_label_classification"}))
    with pytest.raises(UserError, match="problem_type multi_label_classification, for which no task here has a loss"):
        load(tmp_path / "model", Given("a fine film", label="yes"))


def test_a_classifier_of_another_program_takes_the_numbers_of_its_classes(models, tmp_path):
    """Its config.json has no entry of our training."""
    folder, *_ = models.folder(("classify", "bert"))
    shutil.copytree(folder, tmp_path / "model")
    stored = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    foreign = {name: stored[name] for name in stored.keys() - {"task", "head"}}
    written(tmp_path / "model/config.json", json.dumps(foreign))
    for label in "yes", "1":
        assert load(tmp_path / "model", Given("a fine film", label=label)).inputs["labels"].tolist() == [1]
    with pytest.raises(UserError, match="the model has the classes no, yes; give their names or their numbers"):
        load(tmp_path / "model", Given("a fine film", label="2"))


def test_a_model_that_writes_answers_also_continues_plain_text(models):
    folder, *_ = models.folder(("instruct", "llama"))
    subject = load(folder, "plural")
    assert subject.task is None
    np.testing.assert_array_equal(subject.inputs["ids"], subject.inputs["labels"])


def test_the_command_explains_a_row_of_a_task(models, tmp_path, capsys):
    folder, *_ = models.folder(("classify", "lstm"))
    out = tmp_path / "page.html"
    assert main(["explain", str(folder), "--text", "a fine film", "--text_pair", "it is good", "--label", "yes",
                 "--out", str(out)]) == 0
    data = re.search(r'<script type="application/json" id="document">(.*?)</script>', out.read_text("utf-8"), re.DOTALL)
    shown = json.loads(data[1])
    assert shown["given"] == {"text": "a fine film", "text_pair": "it is good", "label": "yes"}
    assert (shown["model"]["task"], shown["tokenLosses"][0]["target"]) == ("classify", "yes")
    capsys.readouterr()
    assert main(["explain", str(folder), "--text", "a fine film", "--out", str(tmp_path / "none.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("step", [None, 0])
def test_a_run_that_stopped_before_its_first_checkpoint_is_refused(tmp_path, step):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no checkpoint yet; train until the first one is saved"):
        load(tmp_path / "run", SENTENCE, step)


def test_a_model_that_does_not_learn_from_text_is_refused(text, tmp_path):
    pyllama.create("bert", text, head="classification", tokenizer="byte", **SMALL).save(tmp_path)
    with pytest.raises(UserError, match="does not learn from plain text"):
        load(tmp_path, SENTENCE)
