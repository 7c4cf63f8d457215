"""The Python API: models train in place, runs resume bit for bit, and the caller's NumPy stays unchanged."""
import ast
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import pyllama
from pyllama import params
from pyllama.cli import main
from pyllama.errors import UserError
from pyllama.models import transformer
from pyllama.text.tokenizer import Tokenizer
from pyllama.training.run import RunPolicy

TEXT = "A row times a column is a number. A gradient has the shape of its parameter. " * 20
REVIEWS = "text,label\n" + "a fine film,good\na dull film,bad\nfine acting,good\ndull acting,bad\n" * 8
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
QUICK = {"batch_size": 4, "block_size": 16, "warmup_steps": 0, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text(TEXT)
    Path("reviews.csv").write_text(REVIEWS)


def tiny(family="llama", **fields):
    size = {name: value for name, value in SMALL.items() if (family, name) != ("lstm", "num_attention_heads")}
    return pyllama.create(family, "input.txt", **size, **fields)


def flat(model):
    return np.concatenate([a.ravel() for _, a in params.leaves(model.params)])


# Training

@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_train_changes_the_model_in_place_and_generate_and_save_use_the_new_weights(family):
    model = tiny(family)
    ids = model.tokenizer.encode(TEXT[:16])[None]
    before, written = model.loss(ids, ids)[0], model.generate("A row", max_new_tokens=8)
    records = list(pyllama.train(model, "input.txt", pyllama.Settings(max_steps=30, **QUICK)))
    assert [record.step for record in records] == list(range(1, 31))
    assert records[-1].loss < records[0].loss
    assert model.loss(ids, ids)[0] < before - 0.5
    assert model.generate("A row", max_new_tokens=8) != written
    model.save("saved")
    loaded = pyllama.load("saved")
    assert (flat(loaded) == flat(model)).all()
    assert loaded.generate("A row", max_new_tokens=8) == model.generate("A row", max_new_tokens=8)


def test_bert_learns_masked_tokens_and_bart_corrupted_text():
    for family in ("bert", "bart"):
        model = pyllama.create(family, "input.txt", tokenizer="bpe", vocab_size=280, **SMALL)
        records = list(pyllama.train(model, "input.txt", pyllama.Settings(max_steps=40, **QUICK)))
        assert np.mean([r.loss for r in records[-5:]]) < np.mean([r.loss for r in records[:5]]) - 0.5


def test_the_last_record_and_those_of_eval_steps_have_an_evaluation():
    steps = pyllama.train(tiny(), "input.txt", pyllama.Settings(max_steps=5, **QUICK), policy=RunPolicy(eval_steps=2))
    assert [record.step for record in steps if record.evaluation] == [2, 4, 5]


def test_a_run_that_python_began_and_left_goes_on_bit_for_bit_from_python_and_from_the_command_line():
    settings = pyllama.Settings(max_steps=8, **QUICK)
    whole = tiny()
    for _ in pyllama.train(whole, "input.txt", settings, out_dir="whole"):
        pass
    for name in ("python", "shell"):
        for record in pyllama.train(tiny(), "input.txt", settings, out_dir=name):
            if record.step == 3:
                break
    assert [record.step for record in pyllama.resume("python")] == [4, 5, 6, 7, 8]
    assert main(["resume", "shell"]) == 0
    for name in ("whole", "python", "shell"):
        assert (flat(pyllama.load(name)) == flat(whole)).all(), name


def test_a_folder_that_holds_a_run_is_not_written_to():
    settings = pyllama.Settings(max_steps=1, **QUICK)
    list(pyllama.train(tiny(), "input.txt", settings, out_dir="run"))
    for write in (lambda: next(pyllama.train(tiny(), "input.txt", settings, out_dir="run")),
                  lambda: tiny().save("run")):
        with pytest.raises(UserError, match=r"run (already )?contains a run.*choose another"):
            write()


def damage_latest(run):
    """Damage the latest checkpoint of a run, which therefore has another one."""
    latest = Path(run, "checkpoints", Path(run, "latest").read_text().strip())
    with (latest / "model.safetensors").open("ab") as file:
        file.write(b"?")


def test_a_saved_model_does_not_overwrite_a_checkpoint():
    list(pyllama.train(tiny(), "input.txt", pyllama.Settings(max_steps=1, **QUICK), out_dir="run"))
    Path("moved").symlink_to("run/checkpoints/step-00000001")
    for folder in ("run/checkpoints/step-00000001", "run/checkpoints/mine", "moved"):
        with pytest.raises(UserError, match=f"{folder} belongs to a run.*choose another"):
            tiny(seed=1).save(folder)
    assert pyllama.load("run").notes == ()
    assert not Path("run/checkpoints/mine").exists()


def test_a_float64_model_trains_in_float64_and_its_runs_go_on_bit_for_bit():
    settings = pyllama.Settings(max_steps=4, **QUICK)

    def textual(out_dir):
        return pyllama.train(tiny(dtype="float64"), "input.txt", settings, out_dir=out_dir)

    def on_task(out_dir):
        return pyllama.finetune(tiny("lstm", dtype="float64"), "reviews.csv", "classify", settings, out_dir=out_dir)

    for begin in (textual, on_task):
        whole, halves = f"{begin.__name__}-whole", f"{begin.__name__}-halves"
        list(begin(whole))
        for record in begin(halves):
            if record.step == 2:
                break
        assert [record.step for record in pyllama.resume(halves)] == [3, 4]
        ends = [pyllama.load(run, dtype="float64") for run in (whole, halves)]
        assert (flat(ends[0]) == flat(ends[1])).all()
        assert (flat(ends[0]) != flat(ends[0]).astype(np.float32)).any()


def test_notes_on_a_damaged_checkpoint_are_warnings_at_the_callers_line():
    settings, policy = pyllama.Settings(max_steps=4, **QUICK), RunPolicy(save_steps=1)
    list(pyllama.train(tiny(), "input.txt", settings, out_dir="text", policy=policy))
    list(pyllama.finetune(tiny("lstm"), "reviews.csv", "classify", settings, out_dir="task", policy=policy))
    Path("task/best").unlink()                              # so that predict() reads the latest
    damage_latest("text")
    damage_latest("task")
    for call in (lambda: pyllama.generate("text", "A", max_new_tokens=1),
                 lambda: pyllama.predict("task", "a fine film"),
                 lambda: list(pyllama.resume("task")),
                 lambda: list(pyllama.resume("text"))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        damaged, other = [str(w.message) for w in caught]
        assert "is damaged" in damaged
        assert "is used instead" in other
        assert {w.filename for w in caught} == {__file__}


def test_a_generator_that_is_left_where_it_is_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    records = pyllama.train(tiny(), "input.txt", pyllama.Settings(max_steps=2, **QUICK))
    next(records)
    assert not list((tmp_path / "scratch").iterdir())
    assert [record.step for record in records] == [2]


# Models

def test_loss_takes_labels_as_hugging_face_does():
    model = tiny()
    ids = np.array([[1, 2, 3, 4]])
    value, back = model.loss(ids, ids)
    z, _ = model.logits(ids)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    assert value == pytest.approx(-np.mean([log_p[0, i, ids[0, i + 1]] for i in range(3)]), rel=1e-5)
    alone, _ = model.loss(ids, np.array([[1, -100, 3, -100]]))
    assert alone == pytest.approx(-log_p[0, 1, 3], rel=1e-5)
    for (name, one), (_, other) in zip(params.leaves(back()), params.leaves(back(1.0)), strict=True):
        assert (one == other).all(), name


def test_loss_and_logits_take_lists():
    model = pyllama.create("bert", "input.txt", tokenizer="bpe", vocab_size=280, **SMALL)
    ids, mask = [[1, 2, 3, 4]], [[1, 1, 1, 0]]
    assert model.loss(ids, ids, mask=mask)[0] == model.loss(*map(np.array, (ids, ids)), mask=np.array(mask))[0]
    assert (model.logits(ids, mask=mask)[0] == model.logits(np.array(ids), mask=np.array(mask))[0]).all()


def test_a_model_prints_in_a_few_lines_and_compares_by_identity():
    model, other = tiny(), tiny()
    assert len(repr(model)) < 1500
    assert model == model
    assert model != other
    assert len({model, other}) == 2


def test_a_model_saved_without_a_tokenizer_has_none_when_it_is_loaded():
    tiny().save("saved")
    model = tiny(seed=1)
    model.tokenizer = None
    model.save("saved")
    assert pyllama.load("saved").tokenizer is None


def test_an_lstm_has_the_layers_that_it_is_created_with():
    for layers, fields in ((1, {}), (3, {"num_hidden_layers": 3}), (2, {"num_layers": 2})):
        assert pyllama.create("lstm", "input.txt", hidden_size=8, **fields).config.num_layers == layers


def test_a_source_longer_than_the_learned_positions_is_refused_and_sinusoidal_ones_have_no_limit(monkeypatch):
    bpe = {"tokenizer": "bpe", "vocab_size": 280, **SMALL}
    for model in (pyllama.create("bart", "input.txt", **bpe),
                  pyllama.create("transformer", "input.txt", positions="learned", **bpe)):
        with pytest.raises(UserError, match=r"the prompt has \d+ tokens, but .* is 16; shorten it"):
            model.generate(TEXT, max_new_tokens=2)
    sinusoidal = pyllama.create("transformer", "input.txt", **bpe)
    shapes, encode = [], transformer.encode

    def noting(ids, *rest, **named):
        shapes.append(ids.shape)
        return encode(ids, *rest, **named)

    monkeypatch.setattr(transformer, "encode", noting)
    sinusoidal.generate(TEXT, max_new_tokens=2)
    (_, length), = shapes
    assert length > len(sinusoidal.tokenizer.encode(TEXT))              # the end token, too


def test_generate_gives_a_text_for_a_text_and_a_list_for_a_list():
    model = tiny()
    text = model.generate("A row", max_new_tokens=5)
    assert text.startswith("A row")
    assert len(text) == 10
    assert model.generate(["A row"], max_new_tokens=5) == [text]
    assert pyllama.generate(model, ["A row", "A"], max_new_tokens=5) == [text, model.generate("A", max_new_tokens=5)]
    assert len(model.generate("A row", do_sample=True, num_return_sequences=3, max_new_tokens=2)) == 3


def test_generate_is_what_the_command_line_writes(capsys):
    tiny().save("saved")
    for flags, options in ((["--temperature", "0"], {}), (["--top_k", "0", "--temperature", "1", "--seed", "3"],
                                                          {"do_sample": True, "seed": 3})):
        assert main(["generate", "--model", "saved", "--prompt", "A", "--max_new_tokens", "9", *flags]) == 0
        assert capsys.readouterr().out == pyllama.generate("saved", "A", max_new_tokens=9, **options) + "\n"


def test_an_encoder_decoder_writes_and_a_classifier_is_refused():
    writer = pyllama.create("transformer", "input.txt", tokenizer="bpe", vocab_size=280, **SMALL)
    assert isinstance(writer.generate("A row", max_new_tokens=3, num_beams=2), str)
    with pytest.raises(UserError, match=r"lstm .* does not generate text; .*predict"):
        tiny("lstm").generate("A row")


@pytest.mark.parametrize(("call", "message"), [
    (lambda: pyllama.create("lama", "input.txt"), "there is no family 'lama'; the families are llama"),
    (lambda: pyllama.create("gpt2", "input.txt", head="span"), "a gpt2 has no head 'span'; it has lm"),
    (lambda: pyllama.create("gpt2", "input.txt", rope_theta=1.0), "a gpt2 has no field 'rope_theta'; it has"),
    (lambda: pyllama.create("llama", "absent.txt"), "there is no file or folder 'absent.txt'"),
    (lambda: pyllama.load("absent"), "there is no model at absent"),
    (lambda: next(pyllama.resume("absent")), "absent holds no checkpoint"),
    (lambda: next(pyllama.train(tiny("lstm"), "input.txt")), "does not learn from plain text"),
    (lambda: next(pyllama.train(tiny(), "input.txt")), "block_size is 128, but the model sees only 16 tokens"),
    (lambda: next(pyllama.finetune(tiny(), "reviews.csv", "sing")), "there is no task 'sing'; the tasks are classify"),
    (lambda: next(pyllama.finetune(tiny("gpt2"), "reviews.csv", "classify")), "a gpt2 model cannot do the task"),
    (lambda: pyllama.predict(tiny("lstm"), "a fine film"), "was not trained on a task"),
    (lambda: tiny("lstm", num_attention_heads=2), "an lstm has no field 'num_attention_heads'; it has .*num_hid"),
    (lambda: tiny("lstm", intermediate_size=9), "an lstm has no field 'intermediate_size'; it has"),
    (lambda: tiny("transformer"), "the tokenizer has no end token, .*; use one with an end token, such as bpe"),
    (lambda: next(pyllama.train(tiny("bert"), "input.txt")), "learn one with tokenizer bpe"),
    (lambda: tiny(dtype="flaot32"), "dtype is 'flaot32'; it must be one of float32, float64"),
    (lambda: pyllama.load(".", dtype="float16"), "dtype is 'float16'; it must be one of float32, float64"),
    (lambda: pyllama.Settings(dtype="float16"), "dtype is 'float16'; it must be one of float32, float64"),
    (lambda: pyllama.Settings(optimizer="adam"), "optimizer is 'adam'; it must be one of adamw, sgd"),
    (lambda: pyllama.Settings(schedule="flat"), "schedule is 'flat'; it must be one of cosine"),
    (lambda: next(pyllama.finetune(tiny("lstm"), "reviews.csv", "classify", class_weights="even")),
     "class_weights is 'even'; it must be one of none, balanced"),
    (lambda: next(pyllama.finetune(tiny("lstm"), "reviews.csv", "classify", fields=["text"])),
     "^fields names 1 fields"),
    (lambda: tiny().generate("A", beams=2), "there is no option 'beams' here; the options are max_new"),
    (lambda: tiny().generate(["A", 1]), "a prompt is 1; give a text, or a list of texts"),
    (lambda: pyllama.generate(tiny(), None), "a prompt is None; give a text, or a list of texts"),
    (lambda: tiny().generate("A", stop_strings=5), "stop_strings is 5; it must be"),
])
def test_what_cannot_be_done_is_said_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_tokenizer_and_a_precision_can_be_given():
    model = pyllama.create("llama", Tokenizer.bytes(), dtype="float64", **SMALL)
    assert model.config.vocab_size == 256
    assert flat(model).dtype == np.float64


# Tasks

def test_finetune_gives_the_model_a_head_and_predict_answers():
    model = pyllama.create("bert", "input.txt", tokenizer="bpe", vocab_size=280, **SMALL)
    settings = pyllama.Settings(max_steps=60, batch_size=8, learning_rate=1e-2, warmup_steps=5)
    *_, last = pyllama.finetune(model, "reviews.csv", "classify", settings, max_length=16, out_dir="run")
    assert last.evaluation.accuracy == 1
    for trained in (model, "run"):
        assert pyllama.predict(trained, "a dull film") == "bad"
        assert pyllama.predict(trained, ["a fine film", {"text": "dull acting"}]) == ["good", "bad"]
        assert pyllama.predict(trained, []) == []
    for inputs, options, message in ((["a fine film", {"txt": "dull"}], {}, "input 2 is invalid"),
                                     (["a fine film", 1], {}, "input 2 is 1; give a text, or a dict of text"),
                                     ("a fine film", {"beams": 2}, "there is no option 'beams' here; the options are")):
        with pytest.raises(UserError, match=message):
            pyllama.predict(model, inputs, **options)


def test_predict_warns_of_prompts_that_it_does_not_answer():
    rows = "instruction,output\n" + "name a color,red\nname a fruit,fig\n" * 8
    Path("rows.csv").write_text(rows)
    Path("rows.txt").write_text(rows)
    fields = {**SMALL, "max_position_embeddings": 64}
    model = pyllama.create("llama", "rows.txt", tokenizer="bpe", vocab_size=280, **fields)
    settings = pyllama.Settings(max_steps=1, **QUICK)
    list(pyllama.finetune(model, "rows.csv", "instruct", settings, max_length=64))
    with pytest.warns(UserWarning, match="1 of 1 prompts are not answered"):
        pyllama.predict(model, TEXT)


# Messages and signatures

def test_errors_outside_the_command_line_name_options_without_dashes():
    package = Path(pyllama.__file__).parent
    theirs = "--version 1|--merge"                          # flags of llama2.c's export script, of llama-gguf-split
    raised = 0
    for path in sorted(set(package.rglob("*.py")) - set((package / "cli").rglob("*"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                sentence = "".join(part.value for part in ast.walk(node) if isinstance(part, ast.Constant)
                                   and isinstance(part.value, str))
                assert not re.search("--[a-z]", re.sub(theirs, "", sentence)), (path, sentence)
                raised += 1
    assert raised > 100


# The caller's process

def test_the_functions_and_methods_are_annotated():
    public = [f for name in pyllama.__all__ if inspect.isfunction(f := getattr(pyllama, name))]
    methods = [f for name, f in inspect.getmembers(pyllama.api.Model, inspect.isfunction) if name[0] != "_"]
    assert len(public) > 6
    assert len(methods) > 4
    for f in (*public, *methods):
        signature = inspect.signature(f)
        annotations = [p.annotation for name, p in signature.parameters.items() if name != "self"]
        assert inspect.Signature.empty not in (*annotations, signature.return_annotation), f


def test_importing_pyllama_imports_nothing_else_and_submodules_are_found_when_they_are_named():
    program = ("import sys, pyllama\n"
               "assert 'numpy' not in sys.modules and 'pyllama.api' not in sys.modules\n"
               "assert {'load', 'create', 'ops'} < {*dir(pyllama)} and pyllama.pretrained.load is pyllama.load\n"
               "assert not hasattr(pyllama, 'absent') and pyllama.ops.rms_norm.name == 'rms_norm'\n")
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=Path(__file__).parents[1]).returncode == 0


def test_training_leaves_numpys_memory_handler_as_it_was():
    from numpy._core.multiarray import get_handler_name
    before, during = get_handler_name(), []
    model = tiny()
    for _ in pyllama.train(model, "input.txt", pyllama.Settings(max_steps=2, **QUICK)):
        during.append(get_handler_name())
    assert [*during, get_handler_name()] == [before] * 3
