"""A worker of bench/train.py: pyllama's own trainer.

    python -m bench.train_pyllama SIZE [flag of pyllama train ...]
"""
import contextlib
import sys
import time
from dataclasses import replace

import numpy as np

from bench.rotation import peak_rss, serve
from bench.sizes import RULE, SIZES, text, weight
from bench.timed import timed
from pyllama import memory, params
from pyllama.cli.parsing import parse
from pyllama.models import llama
from pyllama.text.tokens import Tokens
from pyllama.training.loop import Settings, start, train


def tokens(size):
    ids = text(size)
    return Tokens(ids, np.array([0]), np.array([len(ids)]))


def settings(size, flags=()):
    default = Settings(batch_size=size.B, block_size=size.T, max_steps=10 ** 9, schedule="constant", warmup_steps=0,
                       **RULE)
    _, changes = parse(Settings, flags, "bench.train_pyllama")
    return replace(default, **changes)


def model_of(size):
    return llama.LlamaConfig(vocab_size=size.V, hidden_size=size.D, intermediate_size=size.F,
                             num_hidden_layers=size.L, num_attention_heads=size.H, max_position_embeddings=size.T,
                             rms_norm_eps=1e-5, tie_word_embeddings=True)


def training(size, flags=(), like=None):
    """Return (the training state, the generator of its records) on the device of the array `like`."""
    plan = settings(size, flags)
    state = start(model_of(size), plan, like=like)
    for path, leaf in params.leaves(state.p):
        leaf[...] = np.asarray(weight(path, leaf.shape), like=leaf)
    return state, train(state, tokens(size), plan)


def main(name, *flags):
    memory.install()
    state, records = training(SIZES[name], flags)

    def answer(steps, profile=False):
        """Train for some steps; with profile, time each pass of each op as well."""
        seconds, losses, norms = [], [], []
        with timed(state.optimizer) if profile else contextlib.nullcontext({}) as spent:
            for _ in range(steps):
                begin = time.perf_counter()
                record = next(records)
                seconds.append(time.perf_counter() - begin)
                losses.append(record.loss)
                norms.append(record.grad_norm)
        return {"seconds": seconds, "losses": losses, "norms": norms, "peak_rss": peak_rss(), "spent": spent}

    serve(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
