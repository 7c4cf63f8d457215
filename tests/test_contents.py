"""The command inspect: the family, the storage and the tokenizer of any model."""
from dataclasses import replace

import numpy as np
import pytest

import pyllama
from pyllama import pretrained
from pyllama.cli import main
from pyllama.models import MODELS, llama
from pyllama.models.config import Dimensions
from pyllama.params import leaves
from pyllama.quantization import encoded_tree
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer


def printed(capsys, *arguments):
    assert main(["inspect", *map(str, arguments)]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def model():
    tokenizer = special.framed(special.byte_pairs(["the cat"], 290), end=False)
    c = llama.LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                          num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
    return pretrained.Model(c, llama.init(c), tokenizer)


def test_a_file_is_described(model, tmp_path, capsys):
    replace(model, params=encoded_tree(model.params, "q8_0", model.config)).save(tmp_path / "model.gguf")
    out = printed(capsys, tmp_path / "model.gguf")
    assert "llama, head lm; 2 layers, 4 heads, 2 of keys and values, width 64; context 32 tokens" in out
    assert "21 arrays: 16 in q8_0, 5 in float32" in out
    count = sum(a.size for _, a in leaves(model.params))
    assert f"parameters {count:,} in 0.1 MB" in out
    assert "texts begin with <s>; the end token is </s>; no chat template" in out
    tensors = printed(capsys, tmp_path / "model.gguf", "--tensors")
    assert "model.layers.1.self_attn.k_proj.weight 32 x 64 q8_0 model" in tensors
    assert tensors.endswith(f"lm_head.weight {model.tokenizer.vocab_size} x 64 q8_0")


@pytest.mark.parametrize("kind", MODELS)
def test_every_family_is_described(kind, tmp_path, capsys):
    family = MODELS[kind].config
    head = next(iter(family.HEADS), "")
    c = family.small(Dimensions(vocab_size=20, context=8, head=head, width=8, layers=1, heads=2))
    pretrained.Model(c, c.model.init(c), Tokenizer.characters("abc")).save(tmp_path)
    out = printed(capsys, tmp_path)
    assert f"parameters {sum(a.size for _, a in leaves(pyllama.load(tmp_path).params)):,} in" in out
    assert "3 tokens; no end token; no chat template" in out


def test_a_damaged_model_can_be_looked_at(model, tmp_path, capsys):
    model.params["lm_head"]["weight"][0] = np.nan
    replace(model, tokenizer=None).save(tmp_path)
    assert "tokenizer none" in printed(capsys, tmp_path)
    assert main(["inspect", str(tmp_path / "absent")]) == 2
