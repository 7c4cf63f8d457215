"""Models in GGUF files: every LLaMA comes back with the same scores; others, and damaged ones, are refused."""
import contextlib
import functools
import re
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama import params, pretrained
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.formats import gguf, gguf_llama, gguf_rope, gguf_tokenizer, gguf_tokenizer_keys, llama2c
from pyllama.models import MODELS, llama
from pyllama.models.config import Dimensions
from pyllama.models.llama_config import LlamaConfig, MistralConfig
from pyllama.quantization import EncodedArray, decoded_tree, encoded_tree
from pyllama.rotary import frequencies
from pyllama.text import sentencepiece, special
from pyllama.text.tokenizer import Tokenizer
from tests.ggufs import IDS, assert_same_scores, changed, config, model_of
from tests.shared import SHARED, needs

STORIES = SHARED / "fixtures/stories260K"


CONFIGS = {
    "untied": config(), "tied": config(tie_word_embeddings=True), "pairs": config(rope_interleaved=True),
    "one group": config(num_key_value_heads=1), "as many groups": config(num_key_value_heads=4),
    "head_dim": config(head_dim=24), "biases": config(attention_bias=True, mlp_bias=True),
    "mistral": config(MistralConfig, sliding_window=None, rope_theta=1e6),
    "linear": config(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "yarn": config(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}),
    "ends": config(eos_token_id=[2, 5, 7]), "no ids": config(bos_token_id=None, eos_token_id=None),
    "padding": config(pad_token_id=0)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_with_its_scores(name, tmp_path):
    model = model_of(CONFIGS[name], "float64")
    model.save(tmp_path / "model.gguf")
    again = pyllama.load(tmp_path / "model.gguf", dtype="float64")
    assert again.notes == ()
    assert {a.dtype for _, a in params.leaves(again.params)} == {np.dtype("float64")}
    assert_same_scores(model, again)
    wanted = LlamaConfig(**{f: getattr(model.config, f) for f in LlamaConfig.names()} | {"rope_interleaved": True})
    assert replace(again.config, rope_scaling=None) == replace(wanted, rope_scaling=None)
    for c in (again.config, wanted):
        assert np.allclose(frequencies(8, c.rope_theta, c.rope_scaling), frequencies(8, c.rope_theta,
                                                                                     wanted.rope_scaling), rtol=1e-12)


def test_the_permutation_matters(tmp_path):
    """Of a file whose rows of q and k stand as in Hugging Face's models, the scores are those of another model."""
    model = model_of(config(), "float64")
    as_pairs = pretrained.Model(replace(model.config, rope_interleaved=True), model.params)
    as_pairs.save(tmp_path / "model.gguf")
    z = pyllama.load(tmp_path / "model.gguf", dtype="float64").logits(IDS)[0]
    assert np.abs(z - model.logits(IDS)[0]).max() > 0.01


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_encoded_matrices_are_kept_bit_for_bit(kind, interleaved, tmp_path):
    model = model_of(config(rope_interleaved=interleaved))
    encoded = replace(model, params=encoded_tree(model.params, kind, model.config))
    encoded.save(tmp_path / "model.gguf")
    again = pyllama.load(tmp_path / "model.gguf")
    leaves = dict(params.leaves(again.params))
    for name, w in params.leaves(encoded.params):
        assert type(leaves[name]) is type(w)
        if isinstance(w, EncodedArray) and (interleaved or not re.search("[qk]_proj", name)):
            assert (leaves[name].kind, leaves[name].shape) == (kind, w.shape)
            np.testing.assert_array_equal(leaves[name].data, w.data)
    assert_same_scores(encoded, again, 1e-5)                    # float32: 7 sums of up to 96 numbers, 6e-8 each
    decoded = pyllama.load(tmp_path / "model.gguf", dtype="float64")
    assert_same_scores(again, decoded, 1e-5)
    again.save(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()
    metadata = gguf.read(tmp_path / "model.gguf").metadata
    assert metadata["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}[kind]


def test_weights_are_mapped_and_can_be_trained(tmp_path):
    model = model_of(config())
    model.save(tmp_path / "model.gguf")
    before = (tmp_path / "model.gguf").read_bytes()
    again = pyllama.load(tmp_path / "model.gguf")
    w = again.params["model"]["layers"][1]["self_attn"]["q_proj"]["weight"]
    assert not w.flags.owndata
    w += 1
    assert (tmp_path / "model.gguf").read_bytes() == before
    encoded = replace(model, params=encoded_tree(model.params, "q8_0", model.config))
    loss, back = encoded.loss(IDS, IDS)
    assert np.isfinite(loss)
    assert {name: a.shape for name, a in params.leaves(back())} == {n: a.shape for n, a in params.leaves(model.params)}


@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
def test_a_model_in_a_file_gets_another_head(name, tmp_path):
    model = model_of(config())
    if name == "model.bin":
        llama2c.write(tmp_path / name, model.config, model.params)
    else:
        replace(model, params=encoded_tree(model.params, "q8_0", model.config)).save(tmp_path / name)
    again = pretrained.load(tmp_path / name, change=lambda c: replace(c, head="classification", num_labels=3))
    assert again.params["score"]["weight"].shape == (3, 64)
    assert again.notes == ("initialized at random: score.weight", "dropped: lm_head.weight")


@needs(STORIES)
def test_an_encoded_model_is_trained(tmp_path):
    model = pyllama.load(STORIES / "stories260K.bin", tokenizer=STORIES / "tok512.bin")
    replace(model, params=encoded_tree(model.params, "q8_0", model.config)).save(tmp_path / "model.gguf")
    again = pyllama.load(tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 100)
    settings = pyllama.Settings(max_steps=3, batch_size=2, block_size=16)
    losses = [record.loss for record in pyllama.train(again, tmp_path / "text.txt", settings)]
    assert losses[-1] < losses[0]
    assert {a.dtype for _, a in params.leaves(again.params)} == {np.dtype("float32")}


@pytest.mark.parametrize("kind", [None, "f16"])
def test_a_folder_has_the_order_of_hugging_face(kind, tmp_path):
    """f16 keeps 11 bits, and the folder has what it decodes to; sums are rounded otherwise: 1e-5 as above."""
    model = model_of(config(attention_bias=True))
    model = replace(model, params=encoded_tree(model.params, kind, model.config)) if kind else model
    model.save(tmp_path / "model.gguf")
    loaded = pyllama.load(tmp_path / "model.gguf")
    loaded.save(tmp_path / "folder")
    again = pyllama.load(tmp_path / "folder")
    assert again.config.to_dict()["model_type"] == "llama"
    assert not again.config.rope_interleaved
    assert_same_scores(loaded, again, 1e-5)
    for (name, w), (_, v) in zip(params.leaves(again.params), params.leaves(decoded_tree(model.params)), strict=True):
        np.testing.assert_array_equal(w, v, err_msg=name)


def test_a_file_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "model.gguf"
    model_of(config()).save(path)
    before = path.read_bytes()
    other = model_of(config(tie_word_embeddings=True))
    with pytest.raises(UserError, match=r"model\.gguf exists; give another name, or set force"):
        other.save(path)
    assert path.read_bytes() == before
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UserError, match=r"folder\.gguf is a folder; give the name of a file"):
        other.save(tmp_path / "folder.gguf", force=True)
    (tmp_path / "folder.gguf").rmdir()
    other.save(path, force=True)
    assert pyllama.load(path).config.tie_word_embeddings
    again = pyllama.load(path)
    again.save(path, force=True)                                # onto the file that is mapped
    assert_same_scores(other, again, 1e-5)
    other.save(tmp_path / "MODEL.GGUF")
    assert (tmp_path / "MODEL.GGUF").read_bytes() == path.read_bytes()
    (tmp_path / "MODEL.GGUF").unlink()
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    with pytest.raises(UserError, match="cannot write"):
        other.save(tmp_path / "absent" / "model.gguf")


def test_of_several_end_tokens_that_of_the_tokenizer_comes_first(tmp_path):
    """llama.cpp ends a text at the first; llama2.c's models also at <s>, which comes before the next text."""
    tokenizer = special.byte_pairs(["the cat"], 262)
    model = model_of(config(vocab_size=262, eos_token_id=[1, 2]))
    replace(model, tokenizer=tokenizer).save(tmp_path / "model.gguf")
    metadata = gguf.read(tmp_path / "model.gguf").metadata
    assert [metadata[key] for key in gguf_llama.ENDS[:2]] == [2, 1]
    again = pyllama.load(tmp_path / "model.gguf")
    assert (again.config.eos_token_id, again.tokenizer.eos_id) == ([2, 1], 2)


def test_the_start_token_is_the_tokenizers_and_the_end_token_the_models(tmp_path):
    """The tokenizer puts one before a text; generation stops at the other."""
    model = model_of(config(vocab_size=262, bos_token_id=5, eos_token_id=7))
    replace(model, tokenizer=special.byte_pairs(["the cat"], 262)).save(tmp_path / "model.gguf")
    metadata = gguf.read(tmp_path / "model.gguf").metadata
    assert (metadata[gguf_llama.BEGIN], metadata[gguf_llama.ENDS[0]]) == (1, 7)


def test_the_names_are_those_of_llama_cpp(tmp_path):
    theirs = pytest.importorskip("gguf", reason="needs the package gguf to compare with")
    names = theirs.get_tensor_name_map(theirs.MODEL_ARCH.LLAMA, 2)
    c = config(attention_bias=True, mlp_bias=True)
    for name, _ in params.leaves(llama.init(c)):
        assert gguf_llama.theirs(name) == names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_llama.ours(gguf_llama.theirs(name)) == name
    keys = {value.replace("{arch}", "llama") for group in vars(theirs.Keys).values() if isinstance(group, type)
            for value in vars(group).values() if isinstance(value, str)}
    for scaling in (None, *(CONFIGS[name].rope_scaling for name in ("linear", "yarn"))):
        metadata, _, _ = gguf_llama.written(replace(c, rope_scaling=scaling, pad_token_id=0, eos_token_id=[2, 3, 4]),
                                            llama.init(c))
        assert metadata.keys() <= keys
    for kind, value in gguf_llama.FILE_TYPES.items():
        assert theirs.LlamaFileType(value).name == ("ALL_F32" if kind == "F32" else f"MOSTLY_{kind}")
    assert gguf.TYPES.items() <= {kind.name: kind.value for kind in theirs.GGMLQuantizationType}.items()
    assert {kind: theirs.GGML_QUANT_SIZES[kind] for kind in gguf.BLOCKS} == gguf.BLOCKS


# Files that are refused

@pytest.mark.parametrize(("keys", "message"), [
    ({"general.architecture": "qwen2"}, "architecture 'qwen2', but of GGUF files only llama is read"),
    ({"general.architecture": np.uint32(1)}, "general.architecture = 1, but it must be a text"),
    ({"split.count": np.uint16(3)}, "is one of 3 parts of a model; join them"),
    ({"llama.expert_count": np.uint32(8)}, "expert_count = 8, which is not supported"),
    ({"llama.attention.causal": False}, "causal = False, which is not supported"),
    ({"llama.attention.value_length": np.uint32(4)}, "value_length = 4, but keys of 16 numbers"),
    ({"llama.block_count": np.uint32(3)}, "has 21 tensors, too few for 3 layers"),
    ({"llama.block_count": np.uint32(2**31 - 1)}, "too few for 2147483647 layers"),
    ({"llama.feed_forward_length": np.uint32(97)}, r"blk\.0\.ffn_gate\.weight of shape \[96, 64\], but .* \[97, 64\]"),
    ({"llama.embedding_length": np.uint32(128)}, "token_embd.weight of shape"),
    ({"llama.attention.head_count_kv": np.array([2, 1], np.int32)}, r"= \[2, 1\], but all layers must have the same"),
    ({"llama.attention.layer_norm_rms_epsilon": np.float32("nan")}, "must be a number"),
    ({"llama.attention.layer_norm_rms_epsilon": np.float32(0)}, "rms_norm_eps is 0.0; it must be above 0"),
    ({"llama.context_length": np.uint64(2**40)}, "must be a whole number from 1 to 2,147,483,647"),
    ({"tokenizer.ggml.eos_token_id": np.uint32(11)}, "eos_token_id = 11, outside the vocabulary of 11 tokens"),
])
def test_metadata_that_is_not_supported_is_refused(keys, message, tmp_path):
    with pytest.raises(UserError, match=message):
        pyllama.load(changed(tmp_path, lambda metadata, tensors: metadata.update(keys)))


def test_a_file_without_a_key_or_a_tensor_is_refused_or_read(tmp_path):
    metadata, tensors, _ = gguf_llama.written(config(), model_of(config()).params)
    for name in tensors:
        without = changed(tmp_path, lambda metadata, tensors, name=name: tensors.pop(name))
        if name == "output.weight":
            assert pyllama.load(without).config.tie_word_embeddings
        else:
            with pytest.raises(UserError, match=f"lacks the (tensor|matrix) {re.escape(name)}; fetch it again|too few"):
                pyllama.load(without)
    needed = {"general.architecture", "llama.attention.layer_norm_rms_epsilon",
              *(f"llama.{name}" for name in ("context_length", "embedding_length", "block_count", "feed_forward_length",
                                             "attention.head_count"))}
    for name in metadata:
        without = changed(tmp_path, lambda metadata, tensors, name=name: metadata.pop(name))
        if name in needed:
            with pytest.raises(UserError, match=f"lacks {name}; convert the model again"):
                pyllama.load(without)
        elif name != "llama.attention.head_count_kv":           # by default as many as head_count
            assert pyllama.load(without).config.hidden_size == 64


def test_heads_that_do_not_divide_the_width_need_a_key_length(tmp_path):
    def change(metadata, tensors):
        metadata["llama.attention.head_count"] = np.uint32(7)
        del metadata["llama.attention.key_length"]

    with pytest.raises(UserError, match=r"lacks llama\.attention\.key_length; convert the model again"):
        pyllama.load(changed(tmp_path, change))


ODD = [True, "x", "", np.uint8(0), np.int8(-1), np.uint32(1), np.uint32(3), np.uint64(2**63), np.int64(-2**62),
       np.float32("inf"), np.float64("nan"), np.float32(-1), np.float64(1e300), np.array([], np.int32),
       np.array([1, 2]), np.array([np.nan]), np.array([True]), [], ["a"], [np.array([1])]]


def test_any_value_of_any_key_gives_a_model_or_a_sentence(tmp_path):
    more = [f"llama.{name}" for name in gguf_llama.ONLY] + [f"llama.rope.{name}" for name in gguf_rope.KNOWN] + \
        ["split.count", "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.padding_token_id"]
    metadata, tensors, _ = gguf_llama.written(config(), model_of(config()).params)
    for key in {*metadata, *more} - {"general.alignment"}:
        for value in ODD:
            path = tmp_path / "model.gguf"
            path.write_bytes(b"".join(gguf.to_gguf(metadata | {key: value}, tensors)))
            with contextlib.suppress(UserError):
                pyllama.load(path)


def pieces():
    """SentencePiece's byte pairs over two letters."""
    texts = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), *((text, 0, 6) for text in sorted(gguf_tokenizer.HEX)),
             ("ab", -1, 1), ("▁a", -2, 1), ("a", -3, 1), ("b", -4, 1), ("▁", -5, 1)]
    pieces = sentencepiece.Pieces.of(texts)
    return Tokenizer(sentencepiece.tokenizer_of(sentencepiece.Parts(pieces, {3: sentencepiece.BPE, 35: 1}, {4: 0})))


TOKENIZERS = {"characters": lambda: Tokenizer.characters("abc de\n.,é"), "bytes": Tokenizer.bytes, "pieces": pieces}


@functools.cache
def with_tokenizer(name):
    """(the bytes of a file with a tokenizer, how many of them come before the data)"""
    tokenizer = TOKENIZERS[name]()
    c = config(vocab_size=tokenizer.vocab_size + 1)
    metadata, tensors, _ = gguf_llama.written(c, model_of(c).params)
    of_tokenizer, _ = gguf_tokenizer_keys.written(tokenizer, c.vocab_size)
    header, *data = gguf.to_gguf(metadata | of_tokenizer, tensors)
    return b"".join([header, *data]), len(header)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_of_the_header_gives_a_model_or_a_sentence(name, place, change, tmp_path_factory):
    whole, header = with_tokenizer(name)
    content = bytearray(whole)
    content[int(place * header)] ^= change
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(content)
    with contextlib.suppress(UserError), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        model = pyllama.load(path)
        assert model.logits(IDS % model.config.vocab_size)[0].shape == (1, 7, model.config.vocab_size)


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path):
    def damage(metadata, tensors):
        tensors["blk.1.ffn_up.weight"].data[2:4] = [0xC0, 0x7F]

    with pytest.raises(UserError, match=r"1 of 6144 numbers of model\.layers\.1\.mlp\.up_proj\.weight in .* are NaN"):
        pyllama.load(changed(tmp_path, damage))
    assert pyllama.load(tmp_path / "model.gguf", allow_nan=True).notes == ()
    model = model_of(config())
    encoded = replace(model, params=encoded_tree(model.params, "q8_0", model.config))
    encoded.params["model"]["layers"][0]["mlp"]["up_proj"]["weight"].data[0, :2] = 0xFF
    encoded.save(tmp_path / "encoded.gguf")
    with pytest.raises(UserError, match=r"1 of 192 numbers of model\.layers\.0\.mlp\.up_proj\.weight"):
        pyllama.load(tmp_path / "encoded.gguf")


def test_biases_that_a_file_lacks_are_zero(tmp_path):
    c = config(attention_bias=True)
    path = changed(tmp_path, lambda metadata, tensors: tensors.pop("blk.0.attn_output.bias"), c)
    model = model_of(c)
    model.params["model"]["layers"][0]["self_attn"]["o_proj"]["bias"][:] = 0
    assert_same_scores(model, pyllama.load(path), 1e-5)


def test_tensors_that_are_not_known_are_noted(tmp_path):
    def add(metadata, tensors):
        tensors["blk.0.new.weight"] = gguf_llama.of_floats(np.zeros(3, np.float32))

    assert pyllama.load(changed(tmp_path, add)).notes == ("not used: blk.0.new.weight",)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in ("llama", "mistral")])
def test_other_families_are_not_written(kind, tmp_path):
    c = MODELS[kind].config.small(Dimensions(vocab_size=20, context=8, head=next(iter(MODELS[kind].config.HEADS)),
                                             width=8, layers=1, heads=2))
    with pytest.raises(UserError, match=rf"the model is an? m?{kind} with the head"):
        pretrained.Model(c, c.model.init(c)).save(tmp_path / "model.gguf")
    assert not [*tmp_path.iterdir()]


def test_what_llama_cpp_lacks_is_said_or_refused(tmp_path):
    with pytest.warns(UserWarning, match="no sliding window .* the window of 5 tokens"):
        model_of(config(MistralConfig, sliding_window=5)).save(tmp_path / "window.gguf")
    assert pyllama.load(tmp_path / "window.gguf").config.max_position_embeddings == 5
    with pytest.warns(UserWarning, match="of the 4 end tokens the file has the first 3"):
        model_of(config(eos_token_id=[2, 3, 4, 5])).save(tmp_path / "ends.gguf")
    scaling = {**CONFIGS["yarn"].rope_scaling, "attention_factor": 2.0}
    with pytest.raises(UserError, match="only with its usual attention_factor"):
        model_of(config(rope_scaling=scaling)).save(tmp_path / "yarn.gguf")
    with pytest.raises(UserError, match="with the head 'classification'"):
        model_of(config(head="classification", pad_token_id=0)).save(tmp_path / "head.gguf")


# Commands

@needs(STORIES)
@pytest.mark.parametrize("kind", [None, "q8_0"])
def test_the_commands_read_a_file(kind, tmp_path, capsys):
    model = pyllama.load(STORIES / "stories260K.bin", tokenizer=STORIES / "tok512.bin")
    model = replace(model, params=encoded_tree(model.params, kind, model.config)) if kind else model
    model.save(tmp_path / "model.gguf")
    assert main(["generate", "--model", str(tmp_path / "model.gguf"), "--temperature", "0", "--max_new_tokens", "20",
                 "--prompt", "Once upon"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time, there was a little girl named Lily.")
    (tmp_path / "text.txt").write_text("Once upon a time, there was a little girl named Lily.")
    assert main(["evaluate", "--model", str(tmp_path / "model.gguf"), "--data", str(tmp_path / "text.txt")]) == 0
    assert float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1]) < 1.5


@pytest.mark.parametrize("kind", [None, "f16", "bf16", "q8_0", "q4_0"])
def test_loading_takes_little_memory(kind, tmp_path):
    """A copy of the largest matrix would take more.  Of q4_0, the scales of one matrix are copied: a ninth of it."""
    model = model_of(config(vocab_size=8192, hidden_size=512, num_hidden_layers=1))
    model = replace(model, params=encoded_tree(model.params, kind, model.config)) if kind else model
    model.save(tmp_path / "model.gguf")
    pyllama.load(tmp_path / "model.gguf")                       # imports
    tracemalloc.start()
    pyllama.load(tmp_path / "model.gguf")
    assert tracemalloc.get_traced_memory()[1] < model.params["lm_head"]["weight"].nbytes / 4
    tracemalloc.stop()
