"""Models whose layers run several times and whose table of embeddings is two factors: models/sharing.py.

The gradients are those of tests/test_models.py, and the decoding that of tests/test_generate.py and test_decode.py.
"""
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllama
from pyllama import backend, params
from pyllama.cli import contents, main
from pyllama.decode import plan_of
from pyllama.decode.plan import Embed, Product
from pyllama.errors import UserError
from pyllama.formats import gguf_llama, llama2c
from pyllama.models import MODELS, albert, gpt2, llama
from pyllama.models.sharing import expanded
from pyllama.pretrained import Model
from pyllama.quantization import EncodedArray
from pyllama.training import checkpoint
from tests.shared import written
from tests.test_models import INPUTS, ON_THE_RIGHT, SHARED, SHARERS, SHARING, randomized, small

each_shared = pytest.mark.parametrize(("model", "c", "inputs", "options"), SHARED.values(), ids=SHARED)
each_pattern = pytest.mark.parametrize("share", [2, [1, 2, 1, 2]], ids=["2", "1,2,1,2"])
SIZE = dict(vocab_size=19, hidden_size=12, intermediate_size=20, num_hidden_layers=4, num_attention_heads=3,
            max_position_embeddings=16)
IDS = np.arange(12).reshape(2, 6)


def llama_of(**fields):
    c = llama.LlamaConfig(**SIZE, tie_word_embeddings=True, **SHARING | fields)
    return Model(c, llama.init(c))


# What is computed

@each_shared
def test_the_expanded_model_has_the_loss_and_the_summands_of_every_gradient(model, c, inputs, options):
    require_summands(model, c, inputs, options)


@st.composite
def patterns(draw):
    """The layers of up to five runs: each is one that has run, or the next."""
    numbers = [1]
    for _ in range(draw(st.integers(0, 4))):
        numbers.append(draw(st.integers(1, max(numbers) + 1)))
    return numbers


@settings(max_examples=20)
@given(kind=st.sampled_from([*SHARERS]), share=patterns(), recompute=st.booleans())
def test_so_it_has_in_any_pattern(kind, share, recompute):
    model, plain = MODELS[kind].model, small(kind, SHARERS[kind])
    c = replace(plain, **dict.fromkeys(plain.LAYERS, len(share)), share_layers=share, embedding_size=5)
    require_summands(model, c, INPUTS[SHARERS[kind]], {"mask": ON_THE_RIGHT, "recompute": recompute})


def require_summands(model, c, inputs, options):
    """Of its layers' gradients, the runs of one layer add; of its table's, W Pᵀ, both factors follow by the chain rule.

    Products are summed in another order, which the tolerance of test_models' backends allows for.
    """
    p = randomized(model, c)
    plain, whole = expanded(c, p)
    assert (plain.share_layers, plain.embedding_size) == (1, None)
    value, back = model.loss(*inputs, p, c, **options)
    other, other_back = model.loss(*inputs, whole, plain, **options)
    np.testing.assert_allclose(value, other, rtol=1e-12)
    grads, summands = back(), other_back()
    for name, got in params.leaves(grads):
        want = from_expanded(name, p, summands, c.share_layers)
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-13 * max(1, np.abs(want).max()), err_msg=name)


def from_expanded(name, p, summands, share):
    """The gradient of a parameter, given those of the expanded model."""
    path = name.split(".")
    if path[-1] == "projection" or below(p, path[:-1]).get("projection") is not None:
        table, dt = below(p, path[:-1]), below(summands, path[:-1])["weight"]
        return dt.T @ table["weight"] if path[-1] == "projection" else dt @ table["projection"]
    numbers = [place for place, part in enumerate(path) if part.isdigit()]
    if not numbers:
        return below(summands, path)
    first, number, last = path[:numbers[0]], int(path[numbers[0]]), path[numbers[0] + 1:]
    of_each = below(summands, first)
    runs = of_each[number * share:][:share] if isinstance(share, int) else \
        [run for run, stored in zip(of_each, share, strict=True) if stored == number + 1]
    return sum(below(run, last) for run in runs)


def below(tree, path):
    for key in path:
        tree = tree[int(key) if isinstance(tree, list) else key]
    return tree


@pytest.mark.parametrize("kind", SHARERS)
def test_weights_that_are_used_several_times_are_there_once(kind):
    plain = small(kind, SHARERS[kind])
    shared = replace(plain, **SHARING)
    one, other = (dict(params.leaves(c.model.init(c))) for c in (plain, shared))
    assert {part for name in other for part in name.split(".") if part.isdigit()} == {"0"}
    tables = [name for name, a in one.items() if a.shape == (19, 12) and name in other and "lm_head" not in name
              and "position" not in name]
    assert tables
    for name in tables:
        assert other[name].shape == (19, 5)
        assert other[name.replace("weight", "projection")].shape == (12, 5)


def test_without_sharing_a_model_begins_with_the_weights_that_it_always_had():
    """A width of the table that is the model's is none: a config.json of another program may have it."""
    c = llama.LlamaConfig(**SIZE)
    one, other = (llama.init(each) for each in (c, replace(c, embedding_size=12)))
    for (name, a), (_, b) in zip(params.leaves(one), params.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert not {"share_layers", "embedding_size"} & c.to_dict().keys()
    assert replace(c, share_layers="1,2,3,4") == c


def test_projected_rows_begin_in_the_size_of_whole_ones():
    """Their variance is at most as uncertain as that of the 96 x 24 numbers of the projection, √(2/2304) = 3 %; so of
    the standard deviation, 10 % are six times its spread."""
    c = llama.LlamaConfig(**SIZE | {"vocab_size": 2000, "hidden_size": 96, "head_dim": 4}, embedding_size=24)
    for embedding_size in (24, None):
        config = replace(c, embedding_size=embedding_size)
        _, tree = expanded(config, llama.init(config))
        assert np.std(tree["model"]["embed_tokens"]["weight"]) == pytest.approx(config.initializer_range, rel=0.1)


# What is refused

@pytest.mark.parametrize(("fields", "message"), [
    ({"share_layers": 3}, "num_hidden_layers 4 is not a multiple of share_layers 3; change one of them"),
    ({"share_layers": 0}, "share_layers is 0; it must be at least 1"),
    ({"share_layers": [1, 2, 1]}, "share_layers 1,2,1 is a pattern of 3 layers, but num_hidden_layers is 4; give a "
                                  "number for each layer"),
    ({"share_layers": "1,3,1,2"}, "share_layers is 1,3,1,2, but its numbers must be 1, 2, ... in the order of their "
                                  "first use; write 1,2,1,3"),
    ({"share_layers": "0,1,0,1"}, "write 1,2,1,2"),
    ({"share_layers": "1,,1"}, "share_layers is '1,,1'; it must be the number of layers in a row that share weights, "
                               "or the number of each layer's weights, such as 1,2,1,2"),
    ({"share_layers": 0.5}, "share_layers is 0.5; it must be the number of layers"),
    ({"share_layers": [1, 1.5, 2, 2]}, r"share_layers is \[1, 1\.5, 2, 2\]; it must be the number of layers"),
    ({"embedding_size": 13}, "embedding_size is 13, above the model's width 12, which saves nothing; make it smaller"),
    ({"embedding_size": 0}, "embedding_size is 0; it must be at least 1")])
def test_a_pattern_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        llama.LlamaConfig(**SIZE, **fields)


def test_both_sides_of_an_encoder_decoder_must_divide():
    c = replace(small("transformer", "seq2seq"), encoder_layers=2, decoder_layers=3)
    with pytest.raises(UserError, match="decoder_layers 3 is not a multiple of share_layers 2"):
        replace(c, share_layers=2)


# Files

@each_pattern
def test_a_folder_has_each_weight_once_and_is_not_for_transformers(share, tmp_path):
    model = llama_of(share_layers=share)
    model.save(tmp_path / "shared")
    stored = checkpoint.load(tmp_path / "shared")
    assert stored.config["model_type"] == "pyllama-llama"
    assert {name.split(".")[2] for name in stored.tensors if ".layers." in name} == {"0", "1"}
    again = pyllama.load(tmp_path / "shared")
    assert again.config.to_dict() == model.config.to_dict()
    assert again.notes == ()
    model.expanded().save(tmp_path / "whole")
    whole = pyllama.load(tmp_path / "whole")
    assert whole.config.to_dict()["model_type"] == "llama"
    assert len(whole.params["model"]["layers"]) == 4
    np.testing.assert_allclose(whole.logits(IDS)[0], again.logits(IDS)[0], rtol=0, atol=1e-5)
    assert whole.expanded().params["model"]["layers"] is whole.params["model"]["layers"]


@pytest.mark.parametrize("size", [5, 13, "five"])
def test_another_programs_key_of_that_name_is_not_ours(size, tmp_path):
    """A folder that shares weights has a model_type of ours."""
    c = llama.LlamaConfig(**SIZE)
    Model(c, llama.init(c)).save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"embedding_size": size, "share_layers": 2}))
    assert pyllama.load(tmp_path).config.to_dict() == c.to_dict()


@each_pattern
def test_a_gguf_file_has_every_layer_and_the_whole_table(share, tmp_path):
    model = llama_of(share_layers=share)
    model.save(tmp_path / "model.gguf")
    np.testing.assert_allclose(pyllama.load(tmp_path / "model.gguf").logits(IDS)[0], model.logits(IDS)[0], rtol=0,
                               atol=1e-5)
    with pytest.raises(UserError, match="has weights for every layer and one table"):
        gguf_llama.written(model.config, model.params)
    with pytest.raises(UserError, match=re.escape(f"requires share_layers = 1, but the model has {share}")):
        llama2c.write(tmp_path / "model.bin", replace(model.config, rms_norm_eps=1e-5), model.params)


def test_the_width_and_the_groups_of_an_albert_are_its_own(tmp_path):
    c = albert.AlbertConfig(**SIZE, embedding_size=5, num_hidden_groups=2)
    model = Model(c, albert.init(c))
    model.save(tmp_path)
    again = pyllama.load(tmp_path)
    assert again.config.to_dict() == c.to_dict()
    assert again.config.to_dict()["model_type"] == "albert"
    assert again.notes == ()
    np.testing.assert_array_equal(again.logits(IDS)[0], model.logits(IDS)[0])
    with pytest.raises(UserError, match="has inner_group_num = 2; albert supports only 1"):
        albert.AlbertConfig.from_dict(c.to_dict() | {"inner_group_num": 2})
    with pytest.raises(UserError, match="position_embedding_type = 'relative_key'; albert supports only"):
        albert.AlbertConfig.from_dict(c.to_dict() | {"position_embedding_type": "relative_key"})
    with pytest.raises(UserError, match="num_hidden_layers 4 is not a multiple of num_hidden_groups 3; change one"):
        replace(c, num_hidden_groups=3)


# Decoding

@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
@pytest.mark.parametrize("dtype", [None, "q8_0"])
@each_pattern
def test_a_plan_reads_shared_weights_where_they_lie_once(dtype, share):
    model = llama_of(share_layers=share)
    model = model if dtype is None else model.quantize(dtype)
    steps = plan_of(model.config, model.params).steps
    matrices = [matrix for step in steps if isinstance(step, Product) for matrix in step.matrices]
    leaves = {id(leaf) for _, leaf in params.leaves(model.params)}
    assert {id(matrix.weight) for matrix in matrices if matrix.name != "projection"} <= leaves
    assert len(matrices) == 4 * 7 + 3                       # of four runs, and from, to and of the table
    embed, first, *_ = steps
    assert isinstance(embed, Embed)
    assert first.matrices[0].weight is model.params["model"]["embed_tokens"]["projection"]
    assert isinstance(first.matrices[0].weight, np.ndarray)
    assert isinstance(embed.table.weight, EncodedArray if dtype else np.ndarray)


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
def test_a_plan_that_adds_positions_looks_up_in_the_whole_table():
    c = gpt2.GPT2Config(vocab_size=19, n_positions=7, n_embd=12, n_layer=2, n_head=3, embedding_size=5)
    p = gpt2.init(c)
    embed, *_, last = plan_of(c, p).steps
    table = p["transformer"]["wte"]
    np.testing.assert_array_equal(embed.table.weight, table["weight"] @ table["projection"].T)
    assert last.matrices[0].weight is table["weight"]


# The command line

FLAGS = ["--tokenizer", "byte", "--hidden_size", 8, "--num_attention_heads", 2, "--num_hidden_layers", 4,
         "--block_size", 8, "--batch_size", 2, "--share_layers", "1,2,2,1", "--embedding_size", 4, "--sample_tokens", 0,
         "--warmup_steps", 1]


def test_a_run_that_shares_is_resumed_bit_for_bit_and_described(tmp_path, capsys):
    text = written(tmp_path / "text.txt", "Of one layer, several runs.\n" * 40)
    for name, steps in (("whole", 4), ("halves", 2)):
        assert main([*map(str, ["train", "--data", text, *FLAGS, "--out_dir", tmp_path / name, "--max_steps", steps,
                                "--schedule", "constant"])]) == 0
    assert main(["resume", str(tmp_path / "halves"), "--max_steps", "4"]) == 0
    one, other = (checkpoint.load(tmp_path / name) for name in ("whole", "halves"))
    for name, a in one.tensors.items():
        np.testing.assert_array_equal(a, other.tensors[name], err_msg=name)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "whole")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 layers, 2 heads, width 8, weights of 2 layers, in the order 1,2,2,1, token embeddings of width 4" in out
    assert f"parameters {sum(a.size for a in one.tensors.values()):,} in" in out
    assert [*contents.shared(llama_of(share_layers=[1, 2, 3, 4]).config)] == ["token embeddings of width 5"]
    assert [*contents.shared(llama_of().config)] == ["2 layers in a row share weights", "token embeddings of width 5"]


def test_a_pattern_that_does_not_divide_is_one_sentence(tmp_path, capsys):
    text = written(tmp_path / "text.txt", "text " * 40)
    flags = [*FLAGS, "--share_layers", 3]
    assert main([*map(str, ["train", "--data", text, *flags, "--out_dir", tmp_path / "run"])]) == 2
    assert "num_hidden_layers 4 is not a multiple of share_layers 3; change one of them" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
