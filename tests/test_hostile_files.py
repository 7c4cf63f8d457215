"""Files that are damaged, odd or made to harm: a sentence, little memory, and nothing loaded from elsewhere."""
import contextlib
import json
import math
import os
import re
import shutil
import threading
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pyllama
from pyllama import pretrained
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.files import parse_json
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.params import leaves
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint

ODD = [None, [], {}, [1], {"a": 1}, -1, 0, 1, 3, 10**6, 2**31, 2**63, 10**30, 0.5, -0.5, 1e300, math.nan, math.inf,
       -math.inf, "", "x", "1", True, False, [None], [[]], "é\ud800"]
MORE = ["rope_scaling", "rope_parameters", "layer_types", "id2label", "label2id", "problem_type", "architectures",
        "head_dim", "torch_dtype", "quantization_config", "sliding_window", "task"]


def small(kind, head):
    return MODELS[kind].config.small(Dimensions(vocab_size=20, context=8, head=head, width=8, layers=1, heads=2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: the folder of a small model}"""
    return {kind: saved(tmp_path_factory.mktemp(kind), kind) for kind in MODELS}


def saved(folder, kind="llama"):
    c = small(kind, next(iter(MODELS[kind].config.HEADS)))
    pretrained.Model(c, c.model.init(c)).save(folder)
    return folder


def changed(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", MODELS)
def test_any_value_in_config_json_is_read_or_refused_in_a_sentence(kind):
    family = MODELS[kind].config
    for head in family.HEADS:
        stored = json.loads(json.dumps(small(kind, head).to_dict())) | {"model_type": kind}
        for name in {*stored, *MORE}:
            for value in ODD:
                with contextlib.suppress(UserError):
                    c = family.from_dict(stored | {name: value})
                    _ = c.to_dict(), c.copies(), c.training_notes(), family.notes_on(stored)


@pytest.mark.parametrize("kind", MODELS)
def test_a_size_that_is_not_that_of_the_weights_takes_no_memory(kind, folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders[kind], folder)
    text = (folder / "config.json").read_text()
    for name, value in json.loads(text).items():
        if type(value) is not int:
            continue
        for size in (10**6, 2**31 - 1, 2**40):
            changed(folder, **{name: size})
            tracemalloc.start()
            with contextlib.suppress(UserError):
                pyllama.load(folder)
            assert tracemalloc.get_traced_memory()[1] < 2**24
            tracemalloc.stop()
            (folder / "config.json").write_text(text)


def test_deep_json_and_byte_order_marks(tmp_path):
    for deep in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(deep)
    assert parse_json('\ufeff{"a": 1}') == parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    folder = saved(tmp_path / "model")
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert pyllama.load(folder).config.hidden_size == 8
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is damaged: it is not JSON \(its lists .* nested too deeply"):
        pyllama.load(folder)


@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_any_value_in_the_files_beside_it_is_read_or_refused_in_a_sentence(file, folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["llama"], folder)
    (folder / "tokenizer.json").write_text(Tokenizer.characters("abc").rust.to_str())
    for content in [*ODD, *({"eos_token": value, "eos_token_id": value} for value in ODD)]:
        (folder / file).write_text(json.dumps(content))
        with contextlib.suppress(UserError):
            pyllama.load(folder).generate("ab", max_new_tokens=1)


# --- weights ----------------------------------------------------------------------------------------------------------

def with_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    def damage(tensors):
        tensors["model.norm.weight"][3] = value

    folder = with_weights(saved(tmp_path), damage)
    with pytest.raises(UserError, match=r"1 of 8 numbers of model\.norm\.weight in .* are NaN or infinite.*allow_nan"):
        pyllama.load(folder)
    weight = dict(leaves(pretrained.load(folder, allow_nan=True).params))["model.norm.weight"]
    np.testing.assert_array_equal(weight[3], np.float32(value))


def test_large_weights_are_finite_and_too_large_ones_become_infinite(tmp_path):
    def enlarge(tensors):
        tensors["model.norm.weight"] = np.full(8, 3e38, np.float32)
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].astype(np.float64)

    folder = with_weights(saved(tmp_path), enlarge)
    assert pyllama.load(folder).params["model"]["norm"]["weight"][0] == np.float32(3e38)
    with_weights(folder, lambda tensors: tensors["model.embed_tokens.weight"].__setitem__((0, 0), 1e300))
    with pytest.raises(UserError, match="embed_tokens"):
        pyllama.load(folder)


def test_weights_of_integers_are_quantized_and_refused(tmp_path):
    def quantize(tensors):
        tensors["model.norm.weight"] = np.ones(8, np.int8)

    with pytest.raises(UserError, match=r"model\.norm\.weight is int8 in the weights, which are quantized; convert"):
        pyllama.load(with_weights(saved(tmp_path), quantize))


@pytest.mark.parametrize("kind", MODELS)
def test_loaded_parameters_are_those_of_the_file_and_belong_to_the_model(kind, folders):
    model = pyllama.load(folders[kind])
    stored = load_file(folders[kind] / "model.safetensors")
    arrays = dict(leaves(model.params))
    for name, a in arrays.items():
        assert a.flags.writeable
        if name in stored:
            np.testing.assert_array_equal(a, stored[name])
    a = list(arrays.values())
    assert not any(np.shares_memory(one, other) for i, one in enumerate(a) for other in a[:i])
    again = pretrained.changed(model, model.config)
    assert not any(np.shares_memory(one, other) for (_, one), (_, other) in
                   zip(leaves(again.params), leaves(model.params), strict=True))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth",
                                  "model.pt", "tf_model.h5", "flax_model.msgpack"])
def test_a_pickle_is_not_opened(name, tmp_path):
    folder = saved(tmp_path)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UserError, match=rf"{name} is a .*, so it is not read; load it with transformers"):
        pyllama.load(folder)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 5, ["a"]])
def test_a_shard_outside_the_folder_is_not_opened(shard, tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = load_file(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(UserError, match=r"index\.json is damaged: "):
        pyllama.load(folder)


def test_a_run_is_read_while_another_process_saves_and_prunes(tmp_path):
    """Each load has undamaged tensors and no note: `latest` is read again if its checkpoint is pruned meanwhile."""
    ended = threading.Event()

    def save():
        step = 0
        while not ended.is_set():
            step += 1
            checkpoint.save(tmp_path, step, config={"step": step}, tensors={"w": np.full(9, step, np.float32)},
                            optimizer={}, trainer={}, keep=1, tokenizer_files={})

    checkpoint.save(tmp_path, 0, config={"step": 0}, tensors={"w": np.zeros(9, np.float32)}, optimizer={}, trainer={},
                    keep=1, tokenizer_files={})
    writer = threading.Thread(target=save)
    writer.start()
    try:
        for _ in range(100):
            found = checkpoint.load(tmp_path)
            assert found.notes == ()
            assert found.tensors["w"].tolist() == [found.config["step"]] * 9
    finally:
        ended.set()
        writer.join()
    assert os.listdir(tmp_path / "checkpoints")


# --- other formats ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["WordLevel", "BPE", "WordPiece"])
@pytest.mark.parametrize("largest", [2**24, 2**31, 2**32 - 1])
def test_a_tokenizer_with_a_huge_id_is_refused(kind, largest, tmp_path):
    """The library counts up to the largest id when it writes such a tokenizer, and aborts where memory ends."""
    vocab = {"vocab": {"<unk>": 0, "a": largest}, "unk_token": "<unk>"}
    model = {"type": kind, **vocab, **({"merges": []} if kind == "BPE" else {})}
    if kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    (tmp_path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [], "pre_tokenizer": None, "decoder": None, "model": model}))
    with pytest.raises(UserError, match=rf"id {largest:,}, but ids must be below 16,777,216; renumber its"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("header", [
    [2**31 - 1] * 7, [2**30, 2**30, 2**30, 2, 1, 2**30, 2**30], [8, 8, 2**31 - 1, 2, 1, 10, 8], [-2**31] * 7,
    [8, 8, 1, 2, 1, -2**31, 8], [0] * 7, [8, 8, 1, 0, 1, 10, 8], [8, 8, 1, 2, 0, 10, 8], [6, 8, 1, 2, 1, 10, 8]])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_header_of_llama2c_takes_no_memory(header, version, tmp_path):
    path = tmp_path / "model.bin"
    start = b"" if not version else (0x616b3432).to_bytes(4, "little") + version.to_bytes(4, "little")
    path.write_bytes((start + np.array(header, np.int32).tobytes()).ljust(300, b"\0"))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"model\.bin "):
        pyllama.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("model.bin", b"", "has 0 bytes, but the header of a llama2.c model has 28"),
    ("model.gguf", b"version https://git-lfs", "is not a GGUF file, because it does not begin with GGUF"),
    ("pytorch_model.bin", b"PK\x03\x04", "is a pickle of PyTorch, which may run any program"),
    ("old.bin", b"\x80\x02\x8a", "is a pickle of PyTorch"),
    ("model.gguf", b"GGUF\x03\0\0\0" + bytes(99), "lacks general.architecture; convert the model again"),
    ("model.safetensors", bytes(99), "holds weights alone; give the folder that has it and config.json")])
def test_a_file_of_another_format_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(name)} {re.escape(message)}"):
        pyllama.load(path)


def test_a_command_refuses_damaged_weights_unless_they_are_studied(tmp_path, capsys):
    def damage(tensors):
        tensors["model.norm.weight"][3] = np.nan

    folder = saved(tmp_path / "model")
    characters = Tokenizer.characters("abcdefgh")
    (folder / "tokenizer.json").write_text(characters.rust.to_str())
    with_weights(folder, damage)
    (tmp_path / "text.txt").write_text("abcdefgh" * 9)
    command = ["evaluate", "--model", str(folder), "--data", str(tmp_path / "text.txt")]
    assert main(command) == 2
    assert "numbers of model.norm.weight" in capsys.readouterr().err
    assert main([*command, "--allow_nan"]) == 0
    assert "loss nan" in capsys.readouterr().out


STUDIED = "; give another checkpoint, or study this one with `pyllama inspect` or load(path, allow_nan=True)"


@pytest.mark.parametrize("command", [
    "generate --model {}", "chat {}", "quantize {} {}.gguf", "plan {}", "evaluate --model {} --data text.txt",
    "train --data text.txt --init_from {} --out_dir run", "explain {} --text ab --out page.html",
    "plot {} --attention --text ab",
    "finetune --task classify --model {} --data rows.csv --out_dir run"])
def test_each_command_gives_damaged_weights_a_cure_that_works(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "model")
    (folder / "tokenizer.json").write_text(Tokenizer.characters("abcdefgh").rust.to_str())
    with_weights(folder, lambda tensors: tensors["model.norm.weight"].fill(np.inf))
    (tmp_path / "text.txt").write_text("abcdefgh" * 9)
    (tmp_path / "rows.csv").write_text("text,label\n" + "ab,a\nba,b\n" * 9)
    assert main(command.format(folder, folder).split()) == 2
    assert capsys.readouterr().err.strip().endswith(STUDIED)
    assert main(["inspect", str(folder)]) == 0


def test_a_configuration_in_another_encoding_is_named(tmp_path):
    folder = saved(tmp_path / "model")
    (folder / "config.json").write_bytes((folder / "config.json").read_text().encode("utf-16"))
    with pytest.raises(UserError, match=r"config\.json is damaged: it is not JSON \(it is not UTF-8 at byte 0; save"):
        pyllama.load(folder)


def test_the_body_of_a_model_that_learns_from_text_cannot_continue_it(tmp_path):
    folder = saved(tmp_path / "model")
    with_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lm_head\.weight.*; give the whole model, a LlamaForCausalLM, not its body"):
        pyllama.load(folder)
