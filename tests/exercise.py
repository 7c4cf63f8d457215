"""Run every kernel: each op that has one, forward and backward, on small and large problems; then in training.

    python -m tests.exercise            # once, for tools that watch a program, such as valgrind
"""
import itertools
import sys

import numpy as np

import pyllama.ops  # noqa: F401 -- registers
from pyllama import backend, memory
from pyllama.models import llama
from pyllama.op import OPS
from pyllama.testing import problem
from pyllama.testing.accuracy import results
from pyllama.testing.problems import choose_by, large
from pyllama.text.tokens import Tokens
from pyllama.training import loop

COMPILED = [op for op in OPS.values() if "cpu" in op.backends()]


def small_problem(op, seed, dtype="float32"):
    return problem(op, choose_by(np.random.default_rng(seed)), dtype)


def large_problem(op, seed, dtype="float32"):
    choose = choose_by(np.random.default_rng(seed))
    return problem(op, choose, dtype, large(op, choose))


def bits(op, *call):
    return [a.tobytes() for a in results(op, *call)]


def training(steps, hidden, windows, length=64, shards=1):
    """The state of a small model, and the generator of records that trains it.  shards=0: as many as by default."""
    config = llama.LlamaConfig(vocab_size=260, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=1,
                               num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=length,
                               resid_pdrop=0.1)
    settings = loop.Settings(batch_size=windows, block_size=length, shards=shards, max_steps=steps,
                              warmup_steps=1)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 2000).astype(np.uint16)
    state = loop.start(config, settings)
    return state, loop.train(state, Tokens(ids, np.array([0]), np.array([ids.size])), settings)


def main():
    if not backend.cpu:
        sys.exit(backend.why_no_cpu)
    for op, dtype in itertools.product(COMPILED, ("float32", "float64")):
        for call in [large_problem(op, 0, dtype), *(small_problem(op, seed, dtype) for seed in range(10))]:
            assert all(np.isfinite(a).all() for a in results(op, *call)), op.name      # reads every number
    memory.install()
    _, records = training(steps=3, hidden=16, windows=4)
    losses = [record.loss for record in records]
    print(len(COMPILED), "ops on", backend.cpu.isa, "with", backend.cpu.threads(), "threads; losses", losses)


if __name__ == "__main__":
    main()
