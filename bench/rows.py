"""What sparse updates save in a step: zeroing, norm and update, and the whole step.     python -m bench.rows

A LLaMA with an untied table of V rows, of which a step looks up those of its tokens, drawn by Zipf's law.  Dense and
sparse steps take turns; each one's median counts, in seconds of one thread's processor time.
"""
import statistics
import time
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from pyllama import backend, memory, params
from pyllama.models import skipgram
from pyllama.models.llama import LlamaConfig
from pyllama.models.skipgram import SkipgramConfig
from pyllama.text.tokens import Batch, Tokens, windows
from pyllama.training import loop, words

CONFIG = LlamaConfig(vocab_size=32_000, hidden_size=288, intermediate_size=768, num_hidden_layers=2,
                     num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=256)
SETTINGS = loop.Settings(batch_size=8, block_size=128, shards=1, max_steps=10_000, warmup_steps=0)
ROUNDS = 12


def zipf_text(size: int) -> Tokens:
    """Tokens whose frequencies fall as 1/rank."""
    share = 1 / np.arange(1, CONFIG.vocab_size + 1)
    ids = np.random.default_rng(0).choice(CONFIG.vocab_size, size, p=share / share.sum()).astype(np.uint16)
    return Tokens(ids, np.array([0]), np.array([size]))


def timed(f) -> float:
    begin = time.thread_time()
    f()
    return time.thread_time() - begin


def update_of_table(settings):
    """A function: zero, norm and update of a table alone, as in a step."""
    state = loop.start(CONFIG, settings)
    flat = np.zeros_like(state.flat)
    grads = params.over(flat, state.p)
    optimizer, where = state.optimizer, slice(0, CONFIG.vocab_size * CONFIG.hidden_size)
    ids = np.unique(zipf_text(SETTINGS.batch_size * SETTINGS.block_size)[:])
    optimizer.parts = [part._replace(where=where) for part in optimizer.parts[:1]]
    if optimizer.tables:
        table = optimizer.tables.of_name["model.embed_tokens.weight"]
        table.note(ids)
        table.close()
    grads["model"]["embed_tokens"]["weight"][ids] = 1e-3

    def step():
        if optimizer.tables:
            optimizer.clear({"model": {"embed_tokens": grads["model"]["embed_tokens"]}})
        else:
            flat[where] = 0
        optimizer.sum_and_norm([flat])
        optimizer.step(state.flat, flat, 1e-3, 0.1)

    return step


class Labeled:
    """Rows of a text with a class each: a source of batches."""
    def batch(self, settings, step):
        ids = windows(zipf_text(2 * settings.batch_size * settings.block_size), settings.batch_size,
                      settings.block_size, settings.seed, step)
        return Batch({"ids": ids, "labels": ids[:, 0] % 2}, settings.batch_size)


def language_model(settings):
    """A function: one step of a language model, whose output table is dense."""
    records = loop.train(loop.start(CONFIG, settings), zipf_text(100_000), settings)
    return lambda: next(records)


def classifier(settings):
    """A function: one step of a classifier, whose only table is that of the inputs."""
    c = replace(CONFIG, head="classification", num_labels=2)
    records = loop.train(loop.start(c, settings), Labeled(), settings)
    return lambda: next(records)


def word_vectors(settings):
    """A function: one step of skip-gram, whose two tables are all there is."""
    c = SkipgramConfig(CONFIG.vocab_size, 100)
    batch = skipgram.batches(zipf_text(100_000), c, 256, 0)
    records = words.train(loop.start(c, settings), batch, settings)
    return lambda: next(records)


def main():
    memory.install()
    if backend.cpu:
        backend.cpu.set_threads(1)
    output = Table("one thread", "dense ms", "sparse ms", "times", box=None)
    for dtype in "float32", "bfloat16":
        for step in update_of_table, language_model, classifier, word_vectors:
            pair = [step(replace(SETTINGS, dtype=dtype, sparse_updates=sparse)) for sparse in (False, True)]
            samples = [[timed(f) for f in pair] for _ in range(ROUNDS)][2:]
            a, b = (1e3 * statistics.median(column) for column in zip(*samples, strict=True))
            output.add_row(f"{step.__name__}, {dtype}", f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}")
    Console().print(output)


if __name__ == "__main__":
    main()
