"""The table of bench.quantization: formats and methods on tiny models."""
import numpy as np
import pytest

import pyllama
from bench import quantization
from pyllama.quantization.passes import of_encoder
from pyllama.quantization.sample import sampled
from pyllama.text.tokens import joined


def test_a_decoder_has_a_record_for_each_format_and_part():
    model = pyllama.create("llama", "python-docs", tokenizer="byte", hidden_size=32, num_hidden_layers=1,
                           max_position_embeddings=16)
    tokens = joined([np.random.default_rng(0).integers(100, size=2000)])
    sample = sampled(tokens, model.tokenizer, model.config, 0.2, 320)
    first, *records = quantization.of_decoder(model, sample, most=200)
    assert [(record["kind"], record["method"]) for record in records] == [
        *((kind, "nearest") for kind in ("f16", "bf16", "q8_0", "q4_0")), ("q8_0", "all"),
        *(("q4_0", method) for method in quantization.METHODS)]
    assert 200 < first["perplexity"] < 300
    sizes = {record["kind"]: record["megabytes"] for record in [first, *records]}
    assert sizes["float32"] > sizes["f16"] == sizes["bf16"] > sizes["q8_0"] > sizes["q4_0"] > sizes["float32"] / 8
    nearest = records[3]["lost"]
    for record in records:
        assert record["perplexity"] == pytest.approx(first["perplexity"] * np.exp(record["lost"]))
        share = record["lost"] / nearest if record["kind"] == "q4_0" else None
        assert record["share"] == (None if share is None else pytest.approx(share))


def test_an_encoder_has_errors_of_its_matrices():
    model = pyllama.create("bert", "python-docs", tokenizer="byte", hidden_size=32, num_hidden_layers=1, head="none")
    ids = np.random.default_rng(0).integers(100, size=(20, 16))
    rows = of_encoder(ids, np.ones_like(ids))
    records = [*quantization.of_an_encoder(model, rows, rows)]
    assert [record["method"] for record in records[5:]] == [
        method for method in quantization.METHODS if method != quantization.EMBEDDINGS]
    by_name = {(record["kind"], record["method"]): record for record in records}
    assert by_name["q8_0", "nearest"]["inside"] < by_name["q4_0", "+ drift"]["inside"]
    assert by_name["q4_0", "+ drift"]["inside"] < by_name["q4_0", "nearest"]["inside"]
