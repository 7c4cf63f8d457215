"""NumPy's BLAS threads: one while pyllama trains, as many as before afterwards, in either order of imports."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROGRAM = """
from threadpoolctl import threadpool_info

def threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

before = threads()
during = []
plain = llama.loss

def observed(*inputs, **options):
    during.append(threads())
    return plain(*inputs, **options)

llama.loss = observed
config = llama.LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                           num_attention_heads=2, max_position_embeddings=8)
settings = loop.Settings(batch_size=2, block_size=8, max_steps=2)
state = loop.start(config, settings)
between = [threads() for _ in loop.train(state, joined([np.arange(64) % 16]), settings)]
assert during and set().union(*during) == {1}, during
assert between == [before, before] and threads() == before
print(*before)
"""
IMPORTS = ["import numpy as np", "from pyllama.models import llama; from pyllama.text.tokens import joined; "
                                 "from pyllama.training import loop"]


@pytest.mark.parametrize("order", [1, -1], ids=["numpy first", "pyllama first"])
def test_training_sets_one_thread_and_leaves_the_callers_numpy_as_it_was(order):
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    program = "\n".join(IMPORTS[::order]) + PROGRAM
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True,
                         check=False)
    assert run.returncode == 0, run.stderr
    if len(os.sched_getaffinity(0)) > 1:
        assert run.stdout.strip() != "1"                    # else nothing was shown
