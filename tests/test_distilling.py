"""The loss of distillation, a teacher's scores on disk, students, and the command distill."""
import json
from dataclasses import replace

import numpy as np
import pytest

import pyllama
from pyllama import params, pretrained
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.ops import top_scores
from pyllama.tasks import distill, finetune, student
from pyllama.testing import check_partials
from pyllama.text.tokens import joined
from pyllama.training import distilling, teacher_scores
from pyllama.training.distilling import Distillation, Teacher, class_loss_of, loss_of
from pyllama.training.fingerprint import fingerprint
from pyllama.training.lock import locked
from pyllama.training.loop import Settings
from pyllama.training.teacher_scores import scored

FAMILIES = ["llama", "qwen3", "gpt2", "bert", "roberta", "distilbert"]
V = 11
TEXT = "The cat sat on the mat. The dog saw the cat! Who let the dog out? " * 12
TINY = ["--max_steps", "4", "--warmup_steps", "1", "--batch_size", "2", "--block_size", "8", "--sample_tokens", "0",
        "--learning_rate", "1e-2", "--eval_steps", "2", "--eval_tokens", "20"]


def configuration(kind, head=None, **changes):
    family = MODELS[kind].config
    shape = Dimensions(vocab_size=V, context=9, head=head or next(iter(family.LEARNS)), width=8, layers=1, heads=2,
                       hidden=12, dropout=0.0)
    return replace(family.small(shape), **changes)


def randomized(c, seed):
    """Parameters in float64, none of them 0 or 1."""
    flat, p = params.flatten(c.model.init(c, seed, "float64"))
    flat += 0.3 * np.random.default_rng(seed).standard_normal(flat.size)
    return p


def batch(seed=0, rows=3):
    """(ids, labels) [B T], of which some are no targets."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, V, (rows, 7))
    return ids, np.where(rng.random(ids.shape) < 0.3, -100, ids)


def teacher_of(c):
    return Teacher(randomized(c, 2), c)


# The loss

@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("s", [Distillation(temperature=2.0, hidden=0.3), Distillation(alpha=0.0, divergence="reverse"),
                               Distillation(alpha=1.0, hidden=0.5, distance="squared", attention=2.0)],
                         ids=["forward", "reverse", "labels"])
def test_every_gradient_is_the_complex_step(kind, s):
    c = configuration(kind)
    loss, (ids, labels) = loss_of(teacher_of(c), s), batch()
    report = check_partials(lambda p: loss(ids, labels, p=p, c=c, label_smoothing=0.1), randomized(c, 1), seed=0,
                            entries=0, budget=None)
    assert report, str(report)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_with_the_labels_alone_it_is_the_loss_of_the_model(kind):
    """Sums in another order: of 20 rows, each with products of 12 numbers at most, hence 1e-12 of the largest."""
    c = configuration(kind)
    p, (ids, labels) = randomized(c, 1), batch()
    for options in {}, {"z_loss": 0.1, "label_smoothing": 0.2, "count": 40}:
        value, back = loss_of(teacher_of(c), Distillation(alpha=1.0))(ids, labels, p=p, c=c, **options)
        expected, expected_back = c.model.loss(ids, labels, p, c, **options)
        assert value == pytest.approx(expected, rel=1e-13)
        gradients = dict(params.leaves(expected_back()))
        for name, gradient in params.leaves(back()):
            np.testing.assert_allclose(gradient, gradients[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("gpt2", {"embedding_size": 4}), ("bert", {})])
def test_pieces_of_rows_and_gradients_added_in_place_change_nothing(kind, changes, monkeypatch):
    c = configuration(kind, **changes)
    p, (ids, labels) = randomized(c, 1), batch()
    loss = loss_of(teacher_of(c), Distillation(hidden=0.1))
    value, back = loss(ids, labels, p=p, c=c)
    whole = dict(params.leaves(back()))
    monkeypatch.setattr(distilling, "PIECE", 2 * V)
    places = params.rebuild(p, (np.zeros_like(a) for _, a in params.leaves(p)))
    with params.adding(p, places):
        piecewise, back = loss(ids, labels, p=p, c=c)
        params.add(places, back())
    assert piecewise == pytest.approx(value, rel=1e-13)
    for name, gradient in params.leaves(places):
        np.testing.assert_allclose(gradient, whole[name], rtol=0, atol=1e-12, err_msg=name)


def test_a_gradient_that_was_added_cannot_be_scaled():
    c = configuration("llama")
    p = randomized(c, 1)
    with params.adding(p, params.rebuild(p, (np.zeros_like(a) for _, a in params.leaves(p)))):
        _, back = loss_of(teacher_of(c), Distillation())(*batch(), p=p, c=c)
        with pytest.raises(ValueError, match=r"dvalue is 2.0; it must be 1 where gradients are added while"):
            back(2.0)


def test_a_teacher_of_another_family_teaches():
    c, other = configuration("llama"), configuration("gpt2")
    teacher, (ids, labels) = teacher_of(other), batch()
    z, _ = other.model.logits(ids[:, :-1], *teacher)
    y, _ = c.model.logits(ids[:, :-1], p := randomized(c, 1), c)
    t = labels[:, 1:].reshape(-1)
    direct, _ = distilling.kl_divergence(z.reshape(-1, V), y.reshape(-1, V), t, temperature=2.0)
    value, _ = loss_of(teacher, Distillation(temperature=2.0, alpha=0.0))(ids, labels, p=p, c=c)
    assert value == pytest.approx(direct, rel=1e-13)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_all_words_but_one_are_the_same_as_all(divergence):
    """The others are then a single word, so nothing is merged."""
    c = configuration("llama")
    teacher, p, (ids, labels) = teacher_of(c), randomized(c, 1), batch()
    s = Distillation(divergence=divergence, temperature=2.0, alpha=0.25)
    z, _ = c.model.logits(ids[:, :-1], *teacher)
    best = np.argsort(-z, axis=-1)[..., :V - 1]
    (y, rest), _ = top_scores(z.reshape(-1, V), best.reshape(-1, V - 1), temperature=s.temperature)
    stored = {"teacher_ids": best, "teacher_scores": np.concatenate([y, rest[:, None]], 1).reshape(*z.shape)}
    online, back = loss_of(teacher, s)(ids, labels, p=p, c=c)
    cached, cached_back = loss_of(None, s)(ids, labels, p=p, c=c, **stored)
    assert cached == pytest.approx(online, rel=1e-12)
    expected = dict(params.leaves(back()))
    for name, gradient in params.leaves(cached_back()):
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["distilbert", "lstm", "llama"])
def test_the_gradients_of_a_classifier_are_the_complex_step(kind):
    c = configuration(kind, "classification", num_labels=3)
    loss = class_loss_of(Distillation(temperature=3.0, alpha=0.3))
    ids, labels, z = batch()[0], np.array([0, 2, 1]), np.random.default_rng(5).standard_normal((3, 3))
    report = check_partials(lambda p: loss(ids, labels, p=p, c=c, teacher_scores=z, count=4), randomized(c, 1), seed=0,
                            entries=0, budget=None)
    assert report, str(report)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ({"alpha": 1.5}, "alpha is 1.5; it must lie between 0"), ({"alpha": float("nan")}, "alpha is nan"),
    ({"hidden": -1.0}, "hidden is -1.0; it must be at least 0"), ({"top_k": 0}, "top_k is 0; it must be at least 1"),
    ({"divergence": "sideways"}, "divergence is 'sideways'"),
    ({"hidden": 1.0, "cache": "x"}, "a cache keeps the teacher's scores, not its hidden states"),
    ({"attention": -1.0}, "attention is -1.0; it must be at least 0"),
    ({"attention": 1.0, "cache": "x"}, "a cache keeps the teacher's scores, not its attention")])
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Distillation(**wrong)


# A teacher's scores on disk

def in_float32(teacher):
    return Teacher(params.rebuild(teacher.p, (a.astype("float32") for _, a in params.leaves(teacher.p))), teacher.c)


def stored(folder, tokens, *, teacher=None, k=3, T=2.0, **settings):
    teacher = teacher or in_float32(teacher_of(configuration("gpt2", n_positions=64)))
    return scored(tokens, lambda: teacher, fingerprint(teacher.p), V, folder, Settings(batch_size=2, **settings),
                  top_k=k, temperature=T)


@pytest.fixture(scope="module")
def tokens():
    return joined([np.random.default_rng(1).integers(0, V, n).astype(np.uint16) for n in (20, 33)])


@pytest.mark.parametrize("block_size", [1, 2, 5, 8, 60])
def test_writing_goes_on_where_it_was_stopped(block_size, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_scores, "AT_ONCE", 3 * V * block_size)
    folder = tmp_path / "cache"
    stored(folder, tokens, block_size=block_size)
    whole, side = (folder / "teacher.bin").read_bytes(), json.loads((folder / "teacher.json").read_text())
    assert len(whole) == len(tokens) * (3 * 2 + 4 * 4)
    for size in 0, 5, len(whole) // 2, len(whole) - 1:
        (folder / "teacher.json").write_text(json.dumps({k: v for k, v in side.items() if k != "sha256"}))
        (folder / "teacher.bin").write_bytes(whole[:size])
        stored(folder, tokens, block_size=block_size)
        assert (folder / "teacher.bin").read_bytes() == whole


def test_the_scores_of_a_token_are_those_after_half_a_window_at_least(tokens, tmp_path):
    """Windows of 8 begin every 4 tokens; each scores its last 4, the first all 8."""
    teacher = in_float32(teacher_of(configuration("gpt2", n_positions=64)))
    records = stored(tmp_path / "cache", tokens, teacher=teacher, block_size=8).records
    for position in 0, 7, 8, 11, 12, 30, 52:
        begin = max(0, (position - 4) // 4 * 4)
        z, _ = teacher.c.model.logits(tokens[begin:begin + 8][None], *teacher)
        row = z[0, position - begin].astype("float64")
        assert records["ids"][position].tolist() == np.argsort(-row)[:3].tolist()
        (y, rest), _ = top_scores(row[None], records["ids"][position][None].astype(int), temperature=2.0)
        np.testing.assert_allclose(records["scores"][position], [*y[0], rest[0]], rtol=1e-5)    # float32 at about 1


def test_packed_documents_are_scored_apart(tokens, tmp_path):
    teacher = in_float32(teacher_of(configuration("gpt2", n_positions=64)))
    packed = stored(tmp_path / "a", tokens, teacher=teacher, block_size=60, packing=True).records
    z, _ = teacher.c.model.logits(tokens[20:53][None], *teacher)
    np.testing.assert_array_equal(packed["ids"][20:], np.argsort(-z[0], axis=-1)[:, :3])


def test_a_batch_has_the_scores_of_its_tokens(tokens, tmp_path):
    source, settings = stored(tmp_path / "cache", tokens, block_size=8), Settings(batch_size=2, block_size=8)
    inputs = source.batch(settings, 3).inputs
    plain = tokens.batch(settings, 3).inputs
    np.testing.assert_array_equal(inputs["ids"], plain["ids"])
    text, ids = tokens[:].tolist(), inputs["ids"]
    for row, found in zip(ids.tolist(), inputs["teacher_ids"], strict=True):
        begin = next(i for i in range(len(text)) if text[i:i + 9] == row)
        np.testing.assert_array_equal(found, source.records["ids"][begin:begin + 8])
    assert len(source) == len(tokens)


@pytest.mark.parametrize(("change", "message"), [
    ({"T": 1.0}, "has the scores of another temperature; give another cache folder"),
    ({"k": 2}, "another top_k"), ({"block_size": 4}, "another block_size"), ({"packing": True}, "another packing"),
    ({"teacher": in_float32(Teacher(randomized(configuration("gpt2"), 9), configuration("gpt2")))}, "another teacher"),
    ({"k": V}, f"top_k is {V}, but the vocabulary has {V} tokens")])
def test_scores_of_something_else_are_refused(change, message, tokens, tmp_path):
    stored(tmp_path / "cache", tokens, block_size=8)
    before = (tmp_path / "cache/teacher.bin").read_bytes()
    with pytest.raises(UserError, match=message):
        stored(tmp_path / "cache", tokens, **{"block_size": 8, **change})
    assert (tmp_path / "cache/teacher.bin").read_bytes() == before


def test_scores_that_are_complete_are_read_while_another_process_reads_them(tokens, tmp_path):
    first = stored(tmp_path / "cache", tokens, block_size=8)
    with locked(tmp_path / "cache"):
        np.testing.assert_array_equal(stored(tmp_path / "cache", tokens, block_size=8).records, first.records)


def test_scores_of_other_data_and_damaged_ones_are_refused(tokens, tmp_path):
    stored(tmp_path / "cache", tokens, block_size=8)
    with pytest.raises(UserError, match="has the scores of other data"):
        stored(tmp_path / "cache", tokens.between(0, 50), block_size=8)
    file = tmp_path / "cache/teacher.bin"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(UserError, match="is damaged: it is not what was written; remove its folder"):
        stored(tmp_path / "cache", tokens, block_size=8)
    file.unlink()
    with pytest.raises(UserError, match=r"teacher\.bin is missing beside teacher\.json; remove its folder"):
        stored(tmp_path / "cache", tokens, block_size=8)


# The command, on a text

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, rows, and teachers of both."""
    folder = tmp_path_factory.mktemp("distill")
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(TEXT.replace("cat", "act"))
    rows = [{"text": f"{word} {i}", "label": label} for i in range(12) for word, label in (("good", "a"), ("bad", "b"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for model, name in ("llama", "teacher"), ("bert", "masked"):
        flags = ["--tokenizer", "bpe", "--vocab_size", "280"] if model == "bert" else []
        assert main(["train", "--model", model, "--data", f"{folder}/text.txt", "--out_dir", f"{folder}/{name}",
                     "--n_layer", "2", "--n_head", "2", "--n_embd", "8", *flags, *TINY]) == 0
    assert main(["finetune", "--task", "classify", "--model", "lstm", "--data", f"{folder}/rows.jsonl", "--out_dir",
                 f"{folder}/classifier", "--max_steps", "4", "--vocab_size", "280", "--max_length", "16"]) == 0
    return folder


def weights(run):
    return next(run.glob("checkpoints/*4/model.safetensors")).read_bytes()


@pytest.mark.parametrize("flags", [["--hidden", "0.1", "--attention", "1", "--copy_layers"],
                                   ["--cache", "{}/cache", "--top_k", "4"],
                                   ["--divergence", "reverse", "--model", "gpt2", "--dtype", "bfloat16"]],
                         ids=["hidden", "cache", "gpt2"])
def test_a_stopped_run_goes_on_bit_for_bit(flags, folder, tmp_path, capsys):
    words = ["distill", f"{folder}/teacher", "--data", f"{folder}/text.txt", *TINY, "--lr_decay_steps", "4",
             *(flag.format(tmp_path) for flag in flags)]
    assert main([*words, "--out_dir", f"{tmp_path}/whole"]) == 0
    for run in "halves", "python":
        assert main([*words, "--out_dir", f"{tmp_path}/{run}", "--max_steps", "2"]) == 0
    assert main(["resume", f"{tmp_path}/halves", "--max_steps", "4"]) == 0
    assert [record.step for record in pyllama.resume(tmp_path / "python", 4)] == [3, 4]
    assert weights(tmp_path / "whole") == weights(tmp_path / "halves") == weights(tmp_path / "python")
    assert main(["train", "--data", f"{folder}/text.txt", "--out_dir", f"{tmp_path}/alone", "--init_from",
                 f"{tmp_path}/whole", *TINY]) == 0             # a student is a model as any other
    capsys.readouterr()
    assert main(["explain", f"{tmp_path}/whole", "--text", "The cat", "--out", f"{tmp_path}/page.html"]) == 0
    assert "the run learns from a teacher, too; this is a step by the labels alone" in " ".join(
        capsys.readouterr().out.split())
    assert "distill" not in json.loads(next(tmp_path.glob("alone/checkpoints/*4/trainer.json")).read_text())["about"]


def test_a_masked_model_teaches(folder, tmp_path):
    assert main(["distill", f"{folder}/masked", "--data", f"{folder}/text.txt", "--out_dir", f"{tmp_path}/run",
                 "--model", "distilbert", "--hidden", "0.5", *TINY]) == 0
    assert pretrained.load(tmp_path / "run").config.TYPE == "distilbert"


@pytest.mark.parametrize(("words", "message"), [
    (["teacher", "--hidden", "1", "--hidden_size", "4"], "the student's hidden states have 4 numbers, the teacher's 8"),
    (["teacher", "--student", "masked"], "the teacher predicts next token, the student masked tokens"),
    (["teacher", "--student", "other"], "teacher and student have different vocabularies, of "),
    (["teacher", "--student", "teacher", "--copy_layers"], "copy_layers has no effect with student"),
    (["teacher", "--epochs", "2"], "epochs applies to the rows of a task"),
    (["masked", "--cache", "cache"], "a cache needs a model that predicts the next token"),
    (["masked", "--block_size", "9"], "but the teacher sees only 8 tokens"),
    (["classifier", "--field", "a"], "field applies to a text"),
    (["classifier", "--block_size", "9"], "block_size has no effect on rows"),
    (["classifier", "--hidden", "1"], "hidden compares both models at tokens of a text"),
    (["teacher", "--attention", "1", "--num_attention_heads", "1"], "has 2 heads of attention, the student's 1, so"),
    (["teacher", "--num_hidden_layers", "0"], "num_hidden_layers is 0; it must be at least 1"),
    (["teacher", "--alpha", "0", "--z_loss", "1e-4"], "z_loss changes the loss of the labels, but alpha is 0"),
    (["classifier", "--alpha", "0", "--label_smoothing", "0.1"], "label_smoothing changes the loss of the labels"),
    (["nowhere"], "there is no model at ")])
def test_a_command_that_cannot_be_done_is_refused(words, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    if "other" in words and not (folder / "other").exists():
        assert main(["train", "--data", "other.txt", "--out_dir", "other", "--tokenizer", "byte", "--n_layer", "1",
                     "--n_head", "2", "--n_embd", "8", *TINY]) == 0
    data = "rows.jsonl" if words[0] == "classifier" else "text.txt"
    of_text = words[0] != "classifier" and "--block_size" not in words
    own = TINY if of_text else ["--max_steps", "4", "--warmup_steps", "1"]
    capsys.readouterr()
    assert main(["distill", *words[:1], "--data", data, "--out_dir", f"{tmp_path}/run", *own, *words[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/latest").exists()


def test_a_teacher_that_changed_stops_a_resume_unless_its_scores_are_kept(folder, tmp_path, capsys):
    for name, flags in ("live", []), ("kept", ["--cache", f"{tmp_path}/cache"]):
        if not (tmp_path / "teacher").exists():
            pretrained.load(folder / "teacher").save(tmp_path / "teacher")
        assert main(["distill", f"{tmp_path}/teacher", "--data", f"{folder}/text.txt", "--out_dir",
                     f"{tmp_path}/{name}", *TINY, *flags, "--top_k", "4"]) == 0
    model = pretrained.load(tmp_path / "teacher")
    model.params["model"]["norm"]["weight"][0] += 1
    model.save(tmp_path / "teacher")
    capsys.readouterr()
    assert main(["resume", f"{tmp_path}/live", "--max_steps", "5"]) == 2
    assert f"the teacher {tmp_path}/teacher has changed since {tmp_path}/live was started" in capsys.readouterr().err
    assert main(["resume", f"{tmp_path}/kept", "--max_steps", "5"]) == 0


# The command, on the rows of a task

def test_a_classifier_teaches_a_student_of_another_family(folder, tmp_path, capsys):
    words = ["distill", f"{folder}/classifier", "--data", f"{folder}/rows.jsonl", "--model", "distilbert",
             "--num_hidden_layers", "1", "--max_length", "16", "--lr_decay_steps", "4", "--warmup_steps", "1",
             "--batch_size", "4"]
    assert main([*words, "--out_dir", f"{tmp_path}/whole", "--max_steps", "4"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main([*words, "--out_dir", f"{tmp_path}/halves", "--max_steps", "2"]) == 0
    assert [record.step for record in pyllama.resume(tmp_path / "halves", 4)] == [3, 4]
    assert weights(tmp_path / "whole") == weights(tmp_path / "halves")
    assert json.loads((tmp_path / "whole/metrics.json").read_text())["rows"] > 0


def test_a_teacher_with_adapters_beside_a_base_of_few_bits_teaches(folder, tmp_path):
    assert main(["finetune", "--task", "classify", "--model", f"{folder}/masked", "--data", f"{folder}/rows.jsonl",
                 "--out_dir", f"{tmp_path}/few", "--max_steps", "1", "--lora", "query", "--rank", "2", "--base_dtype",
                 "bfloat16"]) == 0
    assert main(["distill", f"{tmp_path}/few", "--data", f"{folder}/rows.jsonl", "--out_dir", f"{tmp_path}/run",
                 "--max_steps", "1"]) == 0


def test_a_row_has_the_teachers_scores_in_the_students_order(folder, tmp_path):
    material = distill.Material((f"{folder}/rows.jsonl",), max_length=16)
    begun = distill.begin_rows(None, folder / "classifier", material, student.Student(), Distillation(), Settings(),
                               finetune.RunPolicy())
    _, trained, _ = finetune.load(folder / "classifier")
    rows = begun.parts["train"]
    expected = distill.classify.scores_of(rows, trained)
    found = np.array([row["teacher_scores"] for row in begun.plan.training.rows])
    np.testing.assert_array_equal(found, expected.astype("float32"))
    distill.taught_rows(begun, Distillation(alpha=1.0), {}, load=None)          # needs no teacher
    swapped = begun.plan.state.config.extra | {"id2label": {"0": "b", "1": "a"}}
    plan = begun.plan._replace(state=replace(begun.plan.state, config=replace(begun.plan.state.config, extra=swapped)))
    again = distill.taught_rows(begun._replace(plan=plan), Distillation(), begun.plan.about[distill.KEY],
                                lambda: trained)
    np.testing.assert_array_equal([row["teacher_scores"] for row in again.plan.training.rows], found[:, ::-1])


def test_rows_of_other_classes_are_refused(folder, tmp_path, capsys):
    rows = (folder / "rows.jsonl").read_text().replace('"b"', '"c"')
    (tmp_path / "rows.jsonl").write_text(rows)
    assert main(["distill", f"{folder}/classifier", "--data", f"{tmp_path}/rows.jsonl", "--out_dir",
                 f"{tmp_path}/run"]) == 2
    assert "the teacher knows the classes a, b, but the rows have a, c; give rows of" in capsys.readouterr().err
