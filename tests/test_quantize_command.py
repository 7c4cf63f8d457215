"""The command quantize, and Model.quantize."""
import re
import warnings

import numpy as np
import pytest

import pyllama
from pyllama import params
from pyllama.cli import main, quantize
from pyllama.errors import UserError
from pyllama.quantization import EncodedArray, decoded_tree
from pyllama.text.tokens import prepare
from tests.shared import SHARED, needs, written

STORIES = SHARED / "fixtures/stories260K"
TEXT = SHARED / "data/quickstart/lm_en_tinystories.txt"
ON_THIS_MACHINE = needs(STORIES, TEXT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text and a model of its letters."""
    folder = tmp_path_factory.mktemp("quantize")
    text = written(folder / "text.txt", "".join(np.random.default_rng(0).choice(list("abc d\n"), 3000)))
    model = pyllama.create("llama", str(text), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=64, max_position_embeddings=16, seed=3)
    model.save(folder / "model")
    return folder


def leaves(model):
    return dict(params.leaves(model.params))


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "f16", "bf16"])
def test_a_quantized_model_computes_with_its_rounded_weights_and_survives_its_file(dtype, folder, tmp_path):
    model = pyllama.load(folder / "model")
    quantized = model.quantize(dtype)
    ids = np.arange(4)[None]
    plain, _ = model.config.model.logits(ids, decoded_tree(quantized.params), model.config)
    np.testing.assert_array_equal(quantized.logits(ids)[0], plain)
    assert 0 < abs(plain - model.logits(ids)[0]).max() < 0.1
    assert quantized.loss(ids, ids)[0] == model.config.model.loss(ids, ids, decoded_tree(quantized.params),
                                                                  model.config)[0]
    assert quantized.tokenizer is model.tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized.save(tmp_path / "model.gguf")
    again = pyllama.load(tmp_path / "model.gguf")
    scores, same = (each.logits(ids)[0] for each in (quantized, again))
    np.testing.assert_allclose(same, scores, rtol=1e-4, atol=1e-5)          # its rotary pairs are adjacent
    kinds = {leaf.kind for leaf in leaves(again).values() if isinstance(leaf, EncodedArray)}
    assert kinds == {dtype}


def test_a_model_is_quantized_once(folder):
    model = pyllama.load(folder / "model")
    for dtype in ("q8_0", "q4_0"):
        with pytest.raises(UserError, match=f"the model is already quantized to {dtype}; quantize the model that it"):
            model.quantize(dtype).quantize("q8_0")
    half = model.quantize("f16")
    assert leaves(half.quantize("q8_0"))["lm_head.weight"].kind == "q8_0"
    with pytest.raises(UserError, match="dtype is 'q5_0'; a model is quantized to f16, bf16, q8_0, q4_0"):
        model.quantize("q5_0")


def test_with_a_text_the_weights_are_others(folder):
    model = pyllama.load(folder / "model")
    nearest, calibrated = (leaves(model.quantize("q4_0", data)) for data in (None, str(folder / "text.txt")))
    assert nearest.keys() == calibrated.keys() == leaves(model).keys()
    assert all((nearest[name].data != calibrated[name].data).any()
               for name, leaf in nearest.items() if isinstance(leaf, EncodedArray))
    model.tokenizer = None
    with pytest.raises(UserError, match="the model has no tokenizer"):
        model.quantize("q4_0", str(folder / "text.txt"))


# --- the command ------------------------------------------------------------------------------------------------------

def test_the_command_writes_a_file_and_reports(folder, tmp_path, capsys):
    out = tmp_path / "small.gguf"
    assert main(["quantize", f"{folder}/model", str(out), "--dtype", "q4_0", "--data", f"{folder}/text.txt",
                 "--report"]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^model\.\S+ +q4_0 +\d+(\.\d+)?% +[-\d]", said, re.MULTILINE)) == 8
    assert re.search(r"^lm_head +q4_0( +\d+(\.\d+)?%){3} +0\.8 +0\.1$", said, re.MULTILINE), said
    assert re.search(r"^perplexity \S+ before, \S+ after: [+-]\d\.\d\d%, over 5\d\d tokens held out$", said,
                     re.MULTILINE), said
    assert re.search(rf"wrote {out}: {out.stat().st_size:,} bytes", said.replace("\n", ""))
    model = pyllama.load(out)
    assert leaves(model)["lm_head.weight"].kind == "q4_0"
    assert leaves(model)["model.norm.weight"].dtype == np.float32


def test_a_report_without_a_text_has_the_errors_of_the_weights(folder, tmp_path, capsys):
    assert main(["quantize", f"{folder}/model", f"{tmp_path}/out.gguf", "--report"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^lm_head +q8_0 +0\.\d+% +- +- +0\.8 +0\.2$", said, re.MULTILINE), said
    assert "with --data TEXT, the report has" in said


def test_a_file_is_replaced_only_by_force(folder, tmp_path, capsys):
    out = written(tmp_path / "out.gguf", "mine")
    assert main(["quantize", f"{folder}/model", str(out)]) == 2
    assert "exists; give another name, or set force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["quantize", f"{folder}/model", str(out), "--force"]) == 0
    assert pyllama.load(out).config.hidden_size == 32
    before = out.read_bytes()
    (tmp_path / "link.gguf").symlink_to(out)
    for name in ("out.gguf", "link.gguf"):
        assert main(["quantize", str(out), f"{tmp_path}/{name}", "--force"]) == 2
        assert "are the same file" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(("words", "sentence"), [
    (["model", "out.bin"], "out.bin would be a GGUF file; give it a name that ends in .gguf"),
    (["model", "out.gguf", "--dtype", "q3_k"], "--dtype is 'q3_k'; it must be one of q8_0, q4_0, f16, bf16"),
    (["model", "out.gguf", "--dtype", "f16", "--data", "text.txt"], "data has no effect on f16"),
    (["model", "out.gguf", "--data", "short.txt"], "the text has 5 tokens, but calibration in windows of 16 needs 18"),
    (["model", "out.gguf", "--data", "short.txt", "--report"], "needs 90; give more text"),
    (["model", "out.gguf", "--data", "missing.txt"], "missing.txt"),
    (["lstm", "out.gguf"], "GGUF files are written of llama and mistral"),
    (["nothing", "out.gguf"], "there is no model at nothing"),
    (["model", "no/folder/out.gguf"], "cannot write no/folder/out.gguf"),
])
def test_bad_input_is_one_sentence(words, sentence, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(folder / "model")
    written(tmp_path / "text.txt", "abcd" * 100)
    written(tmp_path / "short.txt", "abcda")
    if words[0] == "lstm":
        pyllama.create("lstm", f"{folder}/text.txt", hidden_size=32).save(tmp_path / "lstm")
    assert main(["quantize", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("moment", ["calibrated", "show"])
def test_ctrl_c_leaves_nothing_behind(moment, folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, moment, stop)
    assert main(["quantize", f"{folder}/model", f"{tmp_path}/out.gguf", "--data", f"{folder}/text.txt",
                 "--report"]) == 130
    assert not [*tmp_path.iterdir()]


# --- a trained model --------------------------------------------------------------------------------------------------

@ON_THIS_MACHINE
def test_calibration_halves_what_q4_0_loses(tmp_path):
    """On stories260K, and q8_0 loses at most a thousandth of the perplexity; on stories that calibration has not seen.

    A fourth of the tokens that calibration may use; on the whole text it loses 0.42 of what rounding loses.
    """
    model = pyllama.load(STORIES / "stories260K.bin", tokenizer=STORIES / "tok512.bin")
    tokens = prepare([str(TEXT)], model.tokenizer, tmp_path)
    sample = quantize.sampled(tokens.between(0, 40_000), model.tokenizer, model.config, 0.4, 2**13)
    before, nearest, calibrated, fine = (quantize.evaluated(tree, model, sample).loss for tree in (
        model.params, model.quantize("q4_0").params,
        quantize.calibrated_tree(model.params, model.config, "q4_0", sample.rows), model.quantize("q8_0").params))
    assert before == pytest.approx(1.3, abs=0.05)
    assert nearest - before > 0.05
    assert calibrated - before <= (nearest - before) / 2
    assert fine - before <= 0.001
