"""Extractive question answering: windows, labels, predictions and metrics, exact to the character."""
import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Rust

from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.models import bert
from pyllama.tasks.qa import LONGEST, label, likeliest, spans, task, window_bounds, windows
from pyllama.tasks.rows import Row, Source
from pyllama.tasks.run_rows import load_rows, save_rows
from pyllama.tasks.task import Trained
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training.loop import Settings, start, train
from tests.shared import SHARED, needs

QUICKSTART = SHARED / "data/quickstart"
MIXED = ["the cat sat on the mat", "黑豹队的防守只丢了 308 分", "naïve café 😀😀 ok", "黑豹队 the panthers"] * 2


def word_pieces():
    """As BERT's: lower case without accents, [CLS] and [SEP] around."""
    words = ["[UNK]", "[CLS]", "[SEP]", "a", "##b", "cafe", "黑", "豹", "b", "##a", "the", "cat", "##s", ",", "😀"]
    rust = Rust(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    rust.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return Tokenizer(rust)


TOKENIZERS = {"pairs": Tokenizer.byte_pairs(MIXED, 320, ("<pad>", "<s>", "</s>")),
              "learned": task.tokenizer(MIXED, 320), "bytes": Tokenizer.bytes(), "word pieces": word_pieces()}
BYTE_LEVEL = [name for name in TOKENIZERS if name != "word pieces"]
on_all = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
texts = st.text(st.one_of(st.sampled_from("ab  the\n,é黑豹队😀\u0301"), st.characters(exclude_categories=["Cs"])),
                min_size=1, max_size=40)


def trained(tokenizer, max_length=24, **changes):
    c = bert.BertConfig(**dict(vocab_size=max(320, tokenizer.vocab_size), hidden_size=8, num_hidden_layers=1,
                               num_attention_heads=2, intermediate_size=16, max_position_embeddings=64, head="span",
                               initializer_range=1.0, **changes))
    return Trained(c, bert.init(c, 3), tokenizer, max_length)


def asked(context, question="a b?", *answers):
    row = {"context": context, "question": question}
    spans = [{"text": context[first:past], "answer_start": first} for first, past in answers]
    return Row("here", row | ({"answer": spans[0]["text"], "answers": spans} if spans else {}))


# Places

@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(text=texts)
@example(text=" 黑豹队😀 é\n\n")
def test_a_token_has_the_characters_that_its_bytes_touch(name, text):
    ids, places = TOKENIZERS[name].encode_with_positions([text])[0]
    character = np.repeat(np.arange(len(text)), [len(c.encode()) for c in text])
    begin = 0
    for i, (first, past) in zip(ids, places, strict=True):
        bytes_of_it = len(TOKENIZERS[name].rust.id_to_token(int(i)))            # the alphabet has a letter for each
        touched = text[character[begin]:character[begin + bytes_of_it - 1] + 1]
        begin += bytes_of_it
        assert text[first:past] == touched.strip()
        assert past == first or first in character[begin - bytes_of_it:begin] or touched[0].isspace()
    assert begin == len(character)
    np.testing.assert_array_equal(ids, TOKENIZERS[name].encode(text))


@on_all
@given(text=texts)
def test_places_are_in_order_and_end_in_no_white_space(tokenizer, text):
    _, places = tokenizer.encode_with_positions([text])[0]
    flat = np.array([0, *places[places[:, 0] < places[:, 1]].ravel(), len(text)])
    assert (np.diff(flat[::2]) >= 0).all()
    assert (np.diff(flat[1::2]) >= 0).all()
    assert all(text[first:past] == text[first:past].strip() for first, past in places)


def test_white_space_behind_a_token_is_none_of_its_places():
    rust = Rust(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S+\s*"), "isolated")
    _, places = Tokenizer(rust).encode_with_positions(["ab  c\n"])[0]
    assert places.tolist() == [[0, 2], [4, 5]]


def test_a_lone_surrogate_is_refused():
    with pytest.raises(UserError, match="U\\+D800 at position 1"):
        TOKENIZERS["pairs"].encode_with_positions(["a\ud800"])


# Windows

@given(count=st.integers(0, 60), wide=st.integers(1, 20))
@example(count=10, wide=10)
@example(count=11, wide=10)
def test_windows_cover_every_token_and_share_half(count, wide):
    made = window_bounds(count, wide)
    assert sorted({i for window in made for i in range(*window)}) == list(range(count))
    assert all(past - first == wide for first, past in made[:-1])
    assert made[-1][1] - made[-1][0] <= wide
    assert all(before[1] - after[0] == wide // 2 for before, after in pairwise(made))
    assert (len(made) == 1) == (count <= wide)


@on_all
def test_a_window_is_the_question_then_the_context_in_its_frame(tokenizer):
    row = asked("the cat, the cat a cafe the", "a cat")
    one, = windows([row], trained(tokenizer, 64))
    question, context = tokenizer.encode("a cat"), tokenizer.encode(row.values["context"])
    start, end = {"bytes": ([], [])}.get(next(k for k, v in TOKENIZERS.items() if v is tokenizer), ([1], [2]))
    np.testing.assert_array_equal(one.inputs["ids"], [*start, *question, *end, *context, *end])
    before = len(question) + 2 * len(end)
    np.testing.assert_array_equal(one.inputs["types"], [0] * before + [1] * (len(context) + len(end)))
    assert (one.before, one.first, one.past) == (before, 0, len(context))


def test_a_pair_is_framed_as_the_tokenizer_frames_it():
    tokenizer = TOKENIZERS["word pieces"]
    one, = windows([asked("the cats b", "a café")], trained(tokenizer))
    encoding = tokenizer.rust.encode("a café", "the cats b")
    assert (one.inputs["ids"].tolist(), one.inputs["types"].tolist()) == (encoding.ids, encoding.type_ids)
    another = word_pieces()
    another.rust.post_processor = processors.TemplateProcessing(
        pair="[CLS] $A [SEP] [SEP] $B", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    assert special.around(another, texts=2) == [[1], [2, 2], []]


def test_a_model_with_one_token_type_gets_no_types():
    assert all("types" not in w.inputs for w in windows([asked("abc")], trained(Tokenizer.bytes(), type_vocab_size=1)))


@given(question=texts, context=texts, max_length=st.integers(5, 30))
def test_no_window_is_longer_than_it_may_be_and_half_is_the_context(question, context, max_length):
    for window in windows([asked(context, question)], trained(TOKENIZERS["pairs"], max_length)):
        assert len(window.inputs["ids"]) <= max_length
        assert window.before - 2 <= (max_length - 3) // 2 or len(TOKENIZERS["pairs"].encode(question)) < window.before


def test_a_length_without_room_is_refused():
    with pytest.raises(UserError, match="max_length 4 leaves no room"):
        list(windows([asked("abc")], trained(TOKENIZERS["pairs"], 4)))


# Labels and answers

@on_all
@given(data=st.data(), context=texts, max_length=st.integers(8, 24))
def test_an_answer_between_tokens_is_found_back_in_each_window_that_has_all_of_it(tokenizer, data, context, max_length):
    ids, places = tokenizer.encode_with_positions([context])[0]
    seen = [i for i, (first, past) in enumerate(places) if first < past]
    if not seen:
        return
    i, j = sorted(data.draw(st.tuples(*[st.sampled_from(seen)] * 2)))
    first, past = int(places[i, 0]), int(places[j, 1])
    touching = [n for n in seen if places[n, 1] > first and places[n, 0] < past]
    # A token of a letter and the first byte of the next has both of them.
    bytes_are_shared = places[touching[0], 0] < first or places[touching[-1], 1] > past
    row, model = asked(context, "b", (first, past)), trained(tokenizer, max_length)
    whole = 0
    made = list(windows([row], model))
    for window, learned in zip(made, task.examples([row], model).rows, strict=True):
        a, b = label(window, row.values["answers"][0])
        assert learned["labels"].tolist() == [a, b]
        has_all = window.first <= touching[0] and touching[-1] < window.past
        assert has_all == (a > 0)
        if has_all:
            assert learned["ids"][[a, b]].tolist() == ids[[touching[0], touching[-1]]].tolist()
            a, b = np.array([a, b]) - window.before + window.first
            back = window.characters[a, 0], window.characters[b, 1]
            assert back == (first, past) or (back[0] <= first and past <= back[1] and bytes_are_shared)
        else:
            assert (a, b) == (0, 0)
        whole += has_all
    wide = max_length - made[0].before - (0 if tokenizer is TOKENIZERS["bytes"] else 1)
    assert whole or touching[-1] - touching[0] + 1 > wide // 2


@given(seed=st.integers(0, 999), N=st.integers(1, 45))
@example(seed=0, N=45)
@example(seed=1, N=45)
def test_the_likeliest_stretch_is_the_best_of_all_there_are(seed, N):
    rng = np.random.default_rng(seed)
    z, empty = rng.normal(0, 1, (N, 2)), rng.random(N) < 0.3
    z += np.linspace([99, 0], [0, 99], N) * (seed % 2)              # every other time it is the longest there may be
    places = np.stack([3 * np.arange(N), 3 * np.arange(N) + 2 * ~empty], axis=1)
    every = [(z[a, 0] + z[b, 1], places[a, 0], places[b, 1]) for a in range(N) for b in range(a, min(a + LONGEST, N))
             if not empty[a] and not empty[b]]
    score, first, past = likeliest(z, places)
    if every:
        np.testing.assert_allclose(score, max(every)[0])
        assert (first, past) == max(every)[1:]
    else:
        assert (score, first, past) == (-np.inf, 0, 0)


@on_all
@given(contexts=st.lists(texts, min_size=1, max_size=3), max_length=st.integers(8, 24))
def test_what_is_predicted_is_a_stretch_of_the_context_whatever_stands_beside_it(tokenizer, contexts, max_length):
    rows, model = [asked(context) for context in contexts], trained(tokenizer, max_length)
    places = spans(rows, model)
    answers = task.predict(rows, model)
    for row, (_, first, past), answer in zip(rows, places, answers, strict=True):
        context = row.values["context"]
        assert answer == context[first:past] == answer.strip()
        assert 0 <= first <= past <= len(context)
        assert answer or not context.strip() or tokenizer is TOKENIZERS["word pieces"]
        assert spans([row], model)[0][1:] == (first, past)


def scored_by(scores, max_length=11):
    """A Trained whose scores of a token, as first and last place, depend on its byte alone."""
    table = np.zeros((256, 2))
    for character, pair in scores.items():
        table[ord(character)] = pair
    family = SimpleNamespace(logits=lambda p, c, ids, mask, types: (table[ids], None))
    return Trained(SimpleNamespace(model=family, takes_types=True, extra={}), {}, Tokenizer.bytes(), max_length)


def test_the_question_is_no_answer():
    model = scored_by({"?": (9, 9), "b": (1, 0), "c": (0, 1)})
    assert task.predict([asked("a b c d", "??")], model) == ["b c"]


def test_of_two_windows_that_wins_whose_answer_is_further_above_its_first_token(monkeypatch):
    """Windows of 10 characters begin 5 apart; of the first, all scores are 100 higher."""
    model = scored_by({"x": (3, 3), "y": (5, 5)})
    plain, calls = model.config.model.logits, []

    def lifted(**inputs):
        z, _ = plain(**inputs)
        calls.append(len(z))
        return z + 100 * np.array([np.isin(ord("x"), ids) for ids in inputs["ids"]])[:, None, None], None

    monkeypatch.setattr(model.config.model, "logits", lifted)
    assert task.predict([asked("aaxaaaaaaaaaaaaaaayaa", "q")], model) == ["y"]
    assert sum(calls) == 4


def test_rows_are_learned_by_heart():
    contexts = ["the cat sat on the mat", "黑豹队的防守只丢了 308 分"]
    rows = [asked(contexts[0], "who", (4, 7)), asked(contexts[0], "where", (19, 22)),
            asked(contexts[1], "多少", (10, 13)), asked(contexts[1], "谁", (0, 3))]
    c = bert.BertConfig(vocab_size=320, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, head="span",
                        intermediate_size=48, max_position_embeddings=40, hidden_dropout_prob=0.0)
    settings = Settings(max_steps=120, batch_size=4, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0)
    state = start(c, settings)
    model = Trained(c, state.p, TOKENIZERS["learned"], 20)
    losses = [record.loss for record in train(state, task.examples(rows, model), settings)]
    assert losses[-1] < 0.1 < 1 < losses[0]
    assert task.predict([Row("", task.askable(row.values)) for row in rows], model) == ["cat", "mat", "308", "黑豹队"]


# Measures

@pytest.mark.parametrize(("answer", "right", "exact", "f1"), [
    ("The Cat!", ["cat"], 1, 1),
    ("a big red dog", ["red dog", "blue"], 0, 0.8),                     # 2 of 3 words, and both of those due
    ("blue", ["red dog", "blue"], 1, 1),
    ("red red dog", ["red dog dog"], 0, 2 / 3),                         # a word counts as often as both have it
    ("U.S.", ["US"], 1, 1),
    ("an", ["the"], 1, 1),                                              # nothing is left of both
    ("", ["red"], 0, 0),
    ("theatre", ["atre"], 0, 0),
])
def test_english_is_measured_in_words(answer, right, exact, f1):
    rows = [Row("", {"context": "red", "answers": [{"text": text} for text in right]})]
    assert task.metrics([answer], rows) == {"exact_match": exact, "f1": pytest.approx(f1), "segmentation": "words",
                                       "rows": 1}


def test_chinese_is_measured_in_characters_and_the_mean_is_over_rows():
    def row(context, right):
        return Row("", {"context": context, "answers": [{"text": right}]})
    metrics = task.metrics(["黑豹队", "136次", "《红楼梦》", "no"],
                           [row("黑", "豹队"), row("黑", "136 次"), row("黑", "红楼梦"), row("x", "yes")])
    assert metrics == {"exact_match": 0.5, "f1": pytest.approx((0.8 + 1 + 1 + 0) / 4), "segmentation": "characters",
                       "rows": 4}
    assert task.metrics(["x", "x"], [row("黑", "x"), row("x", "x")])["segmentation"] == "words"
    assert task.metrics(["Li"], [row("Li (李) left", "Li")])["segmentation"] == "words"
    for context, answer, half in (("ฉันไปโรงเรียน", "โรงเรียน", "โรง"), ("私は学校に行く", "学校", "学")):
        metrics = task.metrics([half], [row(context, answer)])
        assert metrics["segmentation"] == "characters"
        assert 0.4 < metrics["f1"] < 1


# Rows

def write(path, *lines):
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return Source(path)


ROW = {"context": " red dog, red cat", "question": "Who?", "answer": "red cat",
       "answers": [{"text": "red cat", "answer_start": 10}]}


def test_squad_is_unfolded(tmp_path):
    source = write(tmp_path / "dev.json", {"version": "1.1", "data": [
        {"title": "x", "paragraphs": [{"context": "one two", "qas": [
            {"id": "1", "question": "1?", "answers": [{"text": "one", "answer_start": 0}]},
            {"id": "2", "question": "2?", "answers": [{"text": "two", "answer_start": 4},
                                                      {"text": "one two", "answer_start": 0}]}]}]},
        {"title": "y", "paragraphs": [{"context": "drei", "qas": [
            {"id": "3", "question": "3?", "answers": [{"text": "drei", "answer_start": 0}]}]}]}]})
    rows, _ = task.read(source)
    assert [(row.values["context"], row.values["question"], row.values["answer"]) for row in rows] == [
        ("one two", "1?", "one"), ("one two", "2?", "two"), ("drei", "3?", "drei")]
    assert [one["text"] for one in rows[1].values["answers"]] == ["two", "one two"]
    assert rows[2].place == f"{source.data} item 2, paragraph 1, qa 1"
    bare, _ = task.read(source, answer=False)
    assert [row.values for row in bare] == [
        task.askable(row.values) for row in rows]


@pytest.mark.parametrize("answer", [
    {"answer": "red cat", "start": 10}, {"answer": "red cat", "answer_start": "10"}, {"answer": "red cat"},
    {"answers": {"text": ["red cat"], "answer_start": [10]}}, {"answer": " red cat", "start": 9},
    {"answers": [{"text": "red cat", "answer_start": 10}], "answer": "red cat"},
])
def test_answers_may_be_given_in_several_forms(tmp_path, answer):
    around = {"context": ROW["context"], "question": "Who?"}
    source = write(tmp_path / "rows.jsonl", {**around, **answer}, {"context": ROW["context"],
                                                                   "qas": [{"question": "Who?", **answer}]})
    rows, _ = task.read(source)
    assert [row.values for row in rows] == [ROW, ROW]
    assert [row.place.removeprefix(str(source.data)) for row in rows] == [" line 1", " line 2, qa 1"]
    digests = save_rows({"train": rows, "dev": rows, "test": []}, tmp_path / "data")
    parts, _ = load_rows(tmp_path, digests)
    kept = parts["train"]
    assert [row[:2] for row in kept] == [row[:2] for row in rows]
    (row, *_), _ = task.read(Source(tmp_path / "data/train.jsonl"))
    assert row.values == ROW


def test_an_answer_without_a_position_is_its_first_occurrence():
    assert task.usable({**task.askable(ROW), "answer": "red"})["answers"] == [{"text": "red", "answer_start": 1}]


@pytest.mark.parametrize(("change", "reason"), [
    ({"answer": "red cat", "start": 9},
     "line 1: the answer 'red cat' does not occur at character 9 .* ' red ca' there"),
    ({"answer": "cow"}, "line 1: the answer 'cow' does not occur in its context"),
    ({"answer": "red", "start": -4}, "line 1: the answer 'red' does not occur in its context"),
    ({"answer": "red", "start": "x"}, "line 1: the answer 'red' has the start 'x', which is not a number"),
    ({"answer": 7}, "line 1: 'text' is 7, not a text"),
    ({"answers": ["x"], "is_impossible": True}, "line 1: it has an answer, although is_impossible is true"),
    ({"answers": ["red"]}, "line 1: the answer 'red' is not an object"),
    ({"answer": "red", "context": 5}, "line 1: 'context' is 5, not a text"),
    ({"answer": "red", "question": " "}, "line 1: 'question' is empty"),
    ({}, "line 1: it has no field 'answer'"),
    ({"qas": {}}, "line 1: 'qas' is {}, not a list"),
    ({"qas": ["Who?"]}, "line 1, qa 1: it is not an object"),
])
def test_a_bad_row_is_reported_with_its_line(tmp_path, change, reason):
    source = write(tmp_path / "rows.jsonl", {"context": ROW["context"], "question": "Who?", **change})
    with pytest.raises(UserError, match=reason):
        task.read(source)


@needs(QUICKSTART)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_answer_of_the_real_rows_is_where_its_label_is(language):
    rows, _ = task.read(Source(QUICKSTART / f"qa_{language}.jsonl"))
    learned = task.tokenizer((row.values["context"] for row in rows), 2048)
    found = {}
    for window in windows(rows, trained(learned, 96)):
        a, b = label(window, rows[window.row].values["answers"][0]) - window.before + window.first
        if a >= window.first:
            found[window.row] = rows[window.row].values["context"][window.characters[a, 0]:window.characters[b, 1]]
    measured = task.metrics([found[i] for i in range(len(rows))], rows)
    assert (len(rows), measured["exact_match"]) == (177, 1.0)


def test_train_answer_and_measure_from_the_command_line(tmp_path, capsys):
    source = write(tmp_path / "rows.jsonl", *[{"context": ROW["context"], "qas": [
        {"question": "Who?", "answer": "red cat", "start": 10}]}] * 4).data
    run, small = str(tmp_path / "run"), ["--max_steps", "1", "--eval_steps", "1", "--batch_size", "2"]
    assert main(["finetune", "--task", "qa", "--data", str(source), "--model", "bert", "--dev", "0.3", "--out_dir", run,
                 "--max_length", "32", *small]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["segmentation"] == "words"
    capsys.readouterr()
    bare = write(tmp_path / "bare.jsonl", {"context": ROW["context"], "question": "Who?"}).data
    assert main(["predict", "--model", run, "--data", str(bare)]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])["predicted"]
    assert answer
    assert answer in ROW["context"]
    assert main(["predict", "--model", run, "--text", "Who?"]) == 2
    assert "qa reads context and question, not a single text" in capsys.readouterr().err
    assert main(["predict", "--model", run, "--data", str(bare), "--export", str(tmp_path / "g.csv")]) == 2
    assert "this task has nothing to export" in capsys.readouterr().err
