"""Measure what storage formats and calibration cost and gain: a table of formats and methods for one model and text.

    python -m bench.quantization MODEL --data TEXT [--tokenizer FILE] [--tokens 32768] [--held-out 65536]

A decoder is measured by its perplexity on a fifth of the text, which calibration has not seen.  An encoder without a
head, such as MiniLM, is measured by the errors of its matrices on a fifth of the lines.
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.table import show
from pyllama import params, pretrained
from pyllama.errors import UserError, counted
from pyllama.quantization import EncodedArray, decoded_tree, encoded_tree
from pyllama.quantization.calibration import Method, calibrated_tree
from pyllama.quantization.passes import of_encoder
from pyllama.quantization.report import changes
from pyllama.quantization.sample import sampled
from pyllama.text import corpus, special
from pyllama.text.tokens import prepare
from pyllama.training import loop

HELD_OUT, LINE = 0.2, 64                                    # the share of the text; tokens of a line for an encoder
EMBEDDINGS = "+ embeddings"                                 # needs a loss, because it needs gradients
METHODS = {                                                 # each with one more part
    "GPTQ": Method(search=False, order=False, drift=False, tables=False),
    "+ drift": Method(search=False, order=False, tables=False),
    EMBEDDINGS: Method(search=False, order=False),
    "+ scales searched": Method(order=False),
    "+ large inputs first": Method()}
DECODER = {"format": "{kind}", "method": "{method}", "MB": "{megabytes:.3f}", "perplexity": "{perplexity:.4f}",
           "more": "{more:+.2%}", "nats lost": "{lost:.4f}", "of nearest": "{share:.2f}", "seconds": "{seconds:.0f}"}
ENCODER = {"format": "{kind}", "method": "{method}", "MB": "{megabytes:.3f}", "weights": "{weights:.2%}",
           "outputs": "{outputs:.2%}", "inside": "{inside:.2%}", "last layer": "{last:.2%}", "seconds": "{seconds:.0f}"}


def trees(p, c, rows):
    """Yield {kind, method, tree, seconds}: each format by the nearest values, then calibrated."""
    for kind in ("f16", "bf16", "q8_0", "q4_0"):
        yield timed(kind, "nearest", lambda kind=kind: encoded_tree(p, kind, c))
    yield timed("q8_0", "all", lambda: calibrated_tree(p, c, "q8_0", rows))
    for method in METHODS:
        if method == EMBEDDINGS and "labels" not in rows.inputs:
            continue
        yield timed("q4_0", method, lambda method=method: calibrated_tree(p, c, "q4_0", rows, METHODS[method]))


def timed(kind, method, make):
    begin = time.perf_counter()
    tree = make()
    size = sum(leaf.nbytes for _, leaf in params.leaves(tree))
    return {"kind": kind, "method": method, "tree": tree, "seconds": time.perf_counter() - begin,
            "megabytes": size / 1e6}


def of_decoder(model, sample, most):
    """Records of a table, the first of the original."""
    settings = loop.Settings(block_size=sample.window)

    def loss(tree):
        state = loop.start(model.config, settings, decoded_tree(tree))
        return loop.evaluate(state, sample.held_out, settings, most, sample.cut.windows).loss

    before, nearest = loss(model.params), None
    size = sum(leaf.nbytes for _, leaf in params.leaves(model.params))
    yield {"kind": "float32", "method": "-", "megabytes": size / 1e6, "perplexity": np.exp(before), "more": None,
           "lost": None, "share": None, "seconds": None}
    for record in trees(model.params, model.config, sample.rows):
        lost = loss(record.pop("tree")) - before
        nearest = lost if record["kind"] == "q4_0" and record["method"] == "nearest" else nearest
        yield {**record, "perplexity": np.exp(before + lost), "more": np.expm1(lost), "lost": lost,
               "share": lost / nearest if nearest and record["kind"] == "q4_0" else None}


def of_an_encoder(model, rows, held_out):
    """Records of a table: errors in the mean over the matrices that are multiplied with, and in the last layer."""
    for record in trees(model.params, model.config, rows):
        changed = [change for change in changes(model.params, record.pop("tree"), model.config, held_out)
                   if change.inside is not None]
        yield {**record, **{name: np.mean([getattr(change, name) for change in changed])
                            for name in ("weights", "outputs", "inside")}, "last": changed[-1].inside}


def lines_as_rows(model, data, tokens):
    """(rows to calibrate with, rows that are held out) of the first lines of a text, [B LINE] tokens each."""
    texts = [line for _, text in corpus.documents(data) for line in text.splitlines() if line.strip()]
    encoded = special.encode(model.tokenizer, texts[:tokens // LINE * 5 // 4], max_length=LINE)
    mask = np.arange(LINE) < np.array([len(ids) for ids in encoded])[:, None]
    ids = np.zeros(mask.shape, int)
    ids[mask] = np.concatenate(encoded)
    held = np.arange(len(ids)) % 5 == 0
    return of_encoder(ids[~held], mask[~held]), of_encoder(ids[held], mask[held])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True, help="files, folders, or python-docs")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--tokens", type=int, default=2**15, help="to calibrate with")
    parser.add_argument("--held-out", type=int, default=2**16, help="tokens to measure on, at most")
    options = parser.parse_args()
    model = pretrained.load(options.model, options.tokenizer)
    if any(isinstance(leaf, EncodedArray) for _, leaf in params.leaves(model.params)):
        raise UserError(f"{options.model} is quantized; give the model that it was made of")
    if model.config.learns == "next token":
        with tempfile.TemporaryDirectory() as folder:
            tokens = prepare(options.data, model.require_tokenizer(), folder)
            sample = sampled(tokens, model.require_tokenizer(), model.config, HELD_OUT, options.tokens)
            print(f"{counted(int(sample.rows.counted.sum()), 'token')} to calibrate with")
            show(DECODER, of_decoder(model, sample, options.held_out))
    else:
        show(ENCODER, of_an_encoder(model, *lines_as_rows(model, options.data, options.tokens)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"bench/quantization.py: {error}")
