"""The command plot: curves of runs, attention and gradients of models, in the terminal and as files."""
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

import pyllama
from pyllama import errors, params, pretrained
from pyllama.cli import characters, figures, main, printed
from pyllama.cli.curves import panels
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.study.attention_maps import Map, attention_maps, chosen, titles
from pyllama.study.explain.formulas import attention_weights
from pyllama.study.explain.recording import record
from pyllama.study.gradient_flow import Norm, gradient_flow, kinds
from pyllama.text import special
from pyllama.training.log import read_log
from tests.explained import SENTENCE, SMALL, TEXT, small_run
from tests.extras import needs_matplotlib
from tests.shared import written

TEXTUAL = [name for name, family in MODELS.items() if family.config.LEARNS]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model of each family that learns from text, by name."""
    text = written(tmp_path_factory.mktemp("text") / "text.txt", TEXT)
    found = {}
    for name in TEXTUAL:
        found[name] = tmp_path_factory.mktemp(name)
        pyllama.create(name, text, seed=1, tokenizer="bpe", vocab_size=300, **SMALL).save(found[name])
    return found


def changed(folder, change, out):
    """The model with its parameters changed in place by change(p), saved at `out`."""
    model = pyllama.load(folder)
    change(model.params)
    model.save(out)
    return out


def called(capsys, *argv):
    """(exit code, standard output, standard error)"""
    code = main([str(word) for word in argv])
    return code, *capsys.readouterr()


# --- curves of runs ---------------------------------------------------------------------------------------------------

def test_the_curves_are_what_the_log_has(run):
    log = read_log(run)
    found = {panel.label: panel.series[0] for panel in panels([run])}
    assert [*found] == ["loss (nats per prediction)", "learning rate", "gradient norm before clipping", "tokens/s"]
    loss, _, _, speed = found.values()
    assert loss.line == [(line["step"], line["loss"]) for line in log]
    assert loss.dots == [(4, log[-1]["val_loss"])]
    assert speed.line == [(line["step"], line["tokens"] / line["seconds"]) for line in log]


def test_a_log_of_an_older_program_has_the_curves_that_it_can(tmp_path):
    written(tmp_path / "log.jsonl", '{"step": 1, "loss": 2.0, "lr": null}\n{"step": 2, "loss": 1.0}\n')
    assert [panel.label for panel in panels([tmp_path])] == ["loss (nats per prediction)"]
    written(tmp_path / "log.jsonl", '{"step": 1, "loss": null}\n')
    with pytest.raises(UserError, match="has steps without values; give another run"):
        panels([tmp_path])


def test_what_is_not_a_number_is_left_out(tmp_path):
    written(tmp_path / "log.jsonl", '{"step": "1", "loss": "low", "lr": 0.1, "tokens": "many", "seconds": 2}\n'
            '{"step": Infinity, "lr": 0.2}\n')
    panel, = panels([tmp_path])
    assert (panel.label, panel.series[0].line) == ("learning rate", [(1, 0.1)])


def test_a_terminal_may_be_narrower_than_the_numbers_beside_a_curve(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    assert called(capsys, "plot", run)[0] == 0


def test_without_out_curves_are_printed_and_written(run, capsys):
    code, out, err = called(capsys, "plot", run)
    assert code == 0
    assert "tiny: loss (nats per prediction), ● validation\n" in out
    assert "tiny: tokens/s\n" in out
    assert (run / "curves.png").exists() == ("wrote " in out) == (not err)


def test_without_matplotlib_curves_are_printed_alone(run, capsys, monkeypatch):
    present = errors.importlib.import_module

    def absent(name):
        if name.startswith("pyllama."):                                     # as of the command itself
            return present(name)
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(errors.importlib, "import_module", absent)
    code, out, err = called(capsys, "plot", run)
    assert code == 0
    assert "tokens/s" in out
    assert "curves.png was not written: plot needs matplotlib, which is not installed: pip install" in err
    code, out, err = called(capsys, "plot", run, "--out", "x.svg")
    assert (code, out) == (2, "")
    assert "plot needs matplotlib, which is not installed" in err


# --- attention --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", TEXTUAL)
def test_the_weights_are_those_of_the_model(kind, folders):
    """Their means of the values are the outputs of its attention, and the titles say where they are."""
    model = pyllama.load(folders[kind], dtype="float64")
    ids = special.encode(model.tokenizer, [SENTENCE])[0][None]
    options = {"labels": ids} if model.config.head == "seq2seq" else {}
    recording = record(lambda p: (0.0 * model.config.model.logits(ids, p, model.config, **options)[0].sum(), dict),
                       model.params)
    calls = [call for call in recording.calls if call.op.name == "attention"]
    maps, _ = attention_maps(folders[kind], SENTENCE)
    assert len(calls) == len(maps) == len({*titles(maps)})
    for call in calls:
        q, _, v = call.inputs[:3]
        y = (attention_weights(call).p @ v).reshape(*q.shape[:4], v.shape[-1])
        np.testing.assert_allclose(y, call.outputs[0], rtol=0, atol=1e-12)
    for one in maps:
        assert one.p.shape[1:] == (len(one.queries), len(one.keys))
        np.testing.assert_allclose(one.p.sum(axis=-1), 1, rtol=0, atol=1e-12)


def test_a_decoder_s_rows_are_the_tokens_that_it_reads(folders):
    maps, _ = attention_maps(folders["bart"], SENTENCE)
    by_title = dict(zip(titles(maps), maps, strict=True))
    encoder, own, cross = (by_title[name] for name in ("encoder.layers.0.self_attn", "decoder.layers.0.self_attn",
                                                       "decoder.layers.0.encoder_attn"))
    assert own.queries == own.keys == cross.queries == ["</s>", *encoder.queries[:-1]]      # shifted
    assert cross.keys == encoder.keys == encoder.queries
    assert not np.triu(own.p[0], 1).any()


def test_a_layer_and_a_head_are_chosen(run):
    maps, _ = attention_maps(run, SENTENCE)
    assert titles(maps) == ["layer 0", "layer 1"]
    [one] = chosen(maps, 1, 0)
    assert one.p.tolist() == maps[1].p[:1].tolist()
    for layer, head, sentence in ((2, None, "layer is 2; the model has 2 layers, 0 to 1"),
                                  (-1, None, "layer is -1"), (None, 2, "head is 2; a layer has 2 heads, 0 to 1")):
        with pytest.raises(UserError, match=sentence):
            chosen(maps, layer, head)


def test_a_layer_that_runs_twice_has_two_maps(tmp_path):
    text = written(tmp_path / "text.txt", TEXT)
    pyllama.create("llama", text, seed=1, tokenizer="bpe", vocab_size=300, **SMALL, share_layers=2).save(tmp_path / "m")
    maps, _ = attention_maps(tmp_path / "m", SENTENCE)
    assert titles(maps) == ["layer 0", "layer 1"]
    assert np.abs(maps[0].p - maps[1].p).max() > 0


def test_a_printed_map_is_darker_where_weights_are_larger(run, capsys):
    code, out, err = called(capsys, "plot", run, "--attention", "--text", SENTENCE, "--layer", 0, "--head", 1)
    assert (code, err) == (0, "")
    title, _, *rows = out.splitlines()
    maps, _ = attention_maps(run, SENTENCE)
    p = maps[0].p[1]
    assert title == "layer 0, head 1"
    shades = characters.UNICODE.shades
    for t in range(len(p)):
        assert rows[t].split()[0] == str(t)
        cells = rows[t][printed.NAME + 5:].ljust(2 * len(p))[::2]
        assert [shades.index(cell) for cell in cells] == [math.ceil(4 * math.sqrt(weight) - 1e-9) for weight in p[t]]


def test_a_map_that_is_wider_than_the_terminal_is_refused(run):
    maps, _ = attention_maps(run, SENTENCE)
    with pytest.raises(UserError, match=r"needs \d+ columns, but the terminal has 40; shorten the text"):
        printed.maps(maps, range(2), 40)


# --- gradients --------------------------------------------------------------------------------------------------------

def test_the_norms_are_those_of_the_gradient(run):
    flow, _ = gradient_flow(run, SENTENCE)
    model = pyllama.load(run)
    ids = model.tokenizer.encode(SENTENCE)[None].astype(int)
    value, back = model.config.model.loss(ids, ids, model.params, model.config)
    assert flow.loss == pytest.approx(float(value), rel=1e-6)
    grads = dict(params.leaves(back()))
    assert [norm.name for norm in flow.norms] == [name for name, _ in params.leaves(model.params)]
    for norm in flow.norms:
        assert norm.value == pytest.approx(np.linalg.norm(grads[norm.name].astype(np.float64)), rel=1e-6)


def test_units_that_pass_nothing_back_are_counted(run, tmp_path, capsys):
    """Of a unit of SwiGLU whose output no weight reads, and of all those below a matrix of zeros."""
    def cut(p):
        first, second = p["model"]["layers"]
        first["mlp"]["down_proj"]["weight"][:, 3] = 0
        second["mlp"]["down_proj"]["weight"][:] = 0

    folder = changed(run, cut, tmp_path / "cut")
    flow, _ = gradient_flow(folder, SENTENCE)
    assert [(unit.name, unit.total, unit.dead) for unit in flow.units] == [("model.layers.0.mlp.gate_proj", 12, 1),
                                                                           ("model.layers.1.mlp.gate_proj", 12, 12)]
    silent = {norm.name for norm in flow.norms if norm.value == 0}
    below = "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm"
    assert silent == {f"model.layers.1.{name}.weight" for name in below}
    code, out, _ = called(capsys, "plot", folder, "--gradients", "--text", SENTENCE)
    assert code == 0
    assert "1 of 12 units without a gradient" in out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    assert lines["model.layers.1.mlp.up_proj.weight"] == ["0.00e+00"]


def test_longer_bars_are_larger_gradients(run, capsys):
    _, out, _ = called(capsys, "plot", run, "--gradients", "--text", SENTENCE)
    flow, _ = gradient_flow(run, SENTENCE)
    bars = [line.count("█") for line in out.splitlines()[1:1 + len(flow.norms)]]
    order = np.argsort([norm.value for norm in flow.norms])
    assert (np.diff(np.array(bars)[order]) >= 0).all()
    assert len({*bars}) > 3


@pytest.mark.parametrize("head", ["classification", "tagging", "span"])
def test_a_classifier_s_loss_is_that_of_its_own_answer(head, folders, tmp_path):
    model = pyllama.load(folders["bert"])
    config = replace(model.config, head=head, num_labels=3)
    p = config.model.init(config, seed=1)
    pretrained.Model(config, p, model.tokenizer).save(tmp_path / "model")
    flow, _ = gradient_flow(tmp_path / "model", SENTENCE)
    ids = special.encode(model.tokenizer, [SENTENCE])[0][None]
    z, _ = config.model.logits(ids, p, config)
    z = z.astype(np.float64).swapaxes(1, 2) if head == "span" else z.astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    assert flow.loss == pytest.approx(-log_p.max(axis=-1).mean(), rel=1e-5)       # of float32
    assert all(norm.value > 0 for norm in flow.norms if norm.name.startswith(("classifier", "qa_outputs")))


def test_a_run_on_a_task_stands_for_its_best_checkpoint(tmp_path):
    rows = written(tmp_path / "rows.csv", "text,label\n" + "a cat,good\na dog,bad\n" * 12)
    run = tmp_path / "run"
    assert main(["finetune", "--task", "classify", "--model", "lstm", "--data", f"{rows}", "--out_dir", f"{run}",
                 "--max_steps", "4", "--eval_steps", "2", "--warmup_steps", "1", "--vocab_size", "300"]) == 0
    first = min(path.name for path in (run / "checkpoints").iterdir())
    written(run / "best", f"{first}\n")
    best, of_run, latest = (gradient_flow(path, "a cat")[0].loss for path in (run / "best", run, run / "latest"))
    assert of_run == best != latest


def test_the_same_parameters_of_all_layers_have_one_name():
    norms = [Norm(f"model.{side}.layers.{i}.fc1.{leaf}", 1.0) for side in ("encoder", "decoder") for i in range(2)
             for leaf in ("weight", "bias")]
    assert kinds(norms)[:4] == ["encoder.layers.fc1", "encoder.layers.fc1.bias"] * 2
    assert kinds(norms)[4] == "decoder.layers.fc1"


# --- files ------------------------------------------------------------------------------------------------------------

@needs_matplotlib
def test_an_encoder_and_a_decoder_may_have_different_heads(folders, tmp_path, capsys):
    model = pyllama.load(folders["bart"])
    config = replace(model.config, decoder_attention_heads=4)
    pretrained.Model(config, model.params, model.tokenizer).save(tmp_path / "model")
    words = ["plot", tmp_path / "model", "--attention", "--text", SENTENCE]
    assert called(capsys, *words, "--out", tmp_path / "x.svg")[0] == 0
    assert "head 3" in (tmp_path / "x.svg").read_text()
    _, out, _ = called(capsys, *words)
    assert "encoder.layers.0.self_attn, head 1\n" in out
    assert "\nencoder.layers.0.self_attn, head 2\n" not in out
    assert "decoder.layers.0.self_attn, head 3\n" in out
    maps, _ = attention_maps(tmp_path / "model", SENTENCE)
    assert {one.name.split(".")[1] for one in chosen(maps, None, 3)} == {"decoder"}


@needs_matplotlib
def test_maps_of_many_heads_are_wider_than_a_page(tmp_path):
    one = Map("model.layers.0.self_attn", np.full((48, 9, 9), 1 / 9), list("abcdefghi"), list("abcdefghi"))
    figures.write(tmp_path / "x.svg", figures.draw_maps([one], range(48)))
    texts = [node.text for node in ET.parse(tmp_path / "x.svg").getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("a") == 48 + 1                       # below each map, and beside the first
    assert "47" in texts


PICTURES = {"curves": [], "attention": ["--attention", "--text", "the $cat$ & <b>"],
            "gradients": ["--gradients", "--text", SENTENCE]}


@pytest.fixture
def drawn(run, folders, capsys):
    """A function that runs plot for a kind of picture, with more words; the tokenizer of the run knows no $."""
    def draw(kind, *words):
        return called(capsys, "plot", folders["llama"] if kind == "attention" else run, *PICTURES[kind], *words)
    return draw


@needs_matplotlib
@pytest.mark.parametrize("kind", PICTURES)
def test_an_svg_has_text_and_is_the_same_each_time(kind, drawn, tmp_path):
    for name in ("a.svg", "b.svg", "c.pdf", "d.pdf", "e.png"):
        assert drawn(kind, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.pdf").read_bytes() == (tmp_path / "d.pdf").read_bytes()
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    root = ET.parse(tmp_path / "a.svg").getroot()
    assert float(root.get("width").removesuffix("pt")) <= figures.PAGE * 72
    texts = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    wanted = {"curves": {"tiny", "tiny, validation", "step", "tokens/s", "learning rate"},
              "attention": {"layer 0", "head 1", "$", "&", "<"},
              "gradients": {"self_attn.q_proj", "layer", "0", "1", "other"}}
    assert wanted[kind] <= texts
    sizes = {node.get("style").partition("font-size: ")[2].partition("px")[0] or
             node.get("style").partition("font: ")[2].partition("px")[0]
             for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert sizes == {"8"}


@needs_matplotlib
def test_a_font_without_a_character_is_noted_of_pictures_whose_text_is_drawn(run, tmp_path, capsys):
    folder = tmp_path / "日本"
    folder.mkdir()
    written(folder / "log.jsonl", (run / "log.jsonl").read_text())
    for name, noted in (("a.png", True), ("a.svg", False)):
        _, out, _ = called(capsys, "plot", folder, "--out", tmp_path / name)
        assert ("the font lacks characters" in out) == noted
        assert "Glyph" not in out


@needs_matplotlib
def test_a_picture_on_standard_output_is_a_picture_alone(run, capfdbinary):
    assert main(["plot", str(run), "--out", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"\x89PNG")
    assert out.endswith(b"IEND\xaeB`\x82")
    assert b"wrote -" in err


@needs_matplotlib
def test_a_format_that_needs_another_program_is_refused_without_it(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")                          # where there is no LaTeX
    code, _, err = called(capsys, "plot", run, "--out", tmp_path / "x.pgf")
    assert code == 2
    assert "x.pgf cannot be drawn: 'xelatex' not found; choose a .svg, .pdf or .png file" in err


@needs_matplotlib
@pytest.mark.parametrize(("out", "sentence"), [
    ("x.doc", "x.doc cannot be drawn: .doc is not an image format; choose a .svg, .pdf or .png file"),
    ("no/x.svg", "cannot write no/x.svg: No such file or directory; name a file in a folder that exists"),
])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_file_that_cannot_be_written_is_refused(kind, out, sentence, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = drawn(kind, "--out", out)
    assert code == 2
    assert sentence in err


@pytest.mark.parametrize(("words", "sentence"), [
    (["--attention"], "attention needs a text that the model reads; give one with --text"),
    (["--gradients"], "gradients needs a text that the model reads"),
    (["--attention", "--gradients", "--text", "x"], "attention and gradients are two pictures; ask for one of them"),
    (["--text", "x"], "text has no effect without attention or gradients; remove it"),
    (["--head", "0"], "head has no effect without attention or gradients; remove it"),
    (["--gradients", "--layer", "0", "--text", "x"], "layer has no effect on gradients; remove it"),
    (["{run}", "--attention", "--text", "x"], "attention shows one model, not 2; give one"),
    (["--attention", "--text", ""], "the text has no token; give a longer one"),
    (["--attention", "--text", "the cat " * 20], "the text has 160 tokens, but the model sees only 32"),
    (["--gradients", "--text", "t"], "the text has 1 token; give one of at least 2"),
    (["--gradients", "--text", "the cat " * 20], "the text has 160 tokens, but the model sees only 32"),
], ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "")
def test_a_wrong_question_is_one_sentence(words, sentence, run, capsys):
    code, _, err = called(capsys, "plot", run, *(word.format(run=run) for word in words))
    assert code == 2
    assert sentence in err


def test_models_without_attention_or_a_loss_are_refused(tmp_path, folders):
    text = written(tmp_path / "text.txt", TEXT)
    with pytest.raises(UserError, match="no model at"):
        attention_maps(tmp_path / "none", SENTENCE)
    tokenizer = pyllama.load(folders["llama"]).tokenizer
    config = MODELS["lstm"].config(vocab_size=tokenizer.vocab_size, num_labels=1)
    pretrained.Model(config, config.model.init(config), tokenizer).save(tmp_path / "lstm")
    with pytest.raises(UserError, match="the family lstm has no attention; give a model of another"):
        attention_maps(tmp_path / "lstm", SENTENCE)
    with pytest.raises(UserError, match="answers with a number, and its loss needs the true one"):
        gradient_flow(tmp_path / "lstm", SENTENCE)
    with pytest.raises(UserError, match=r"has no log\.jsonl with steps; give the folder of a run"):
        panels([text.parent])
