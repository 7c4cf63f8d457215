"""Operations and memory of a training step, for models that have a name: the lines of a derivation, run."""
import functools
from dataclasses import replace

from bench.sizes import SIZES
from pyllama.models.llama_config import LlamaConfig
from pyllama.study.derivations.counting import DERIVATION
from pyllama.study.running import Run
from pyllama.training.loop import AT_ONCE

BENCHED = "T", "Sp", "S", "M"                               # the models of bench/README.md
SHARDS = 2                                                  # of its machine, which has two cores
LARGE, LARGE_BATCH = "LLaMA 7B", 2048                       # 4 M tokens (Touvron et al., 2023, table 2)
BYTES = 4                                                   # of a number


def model(name: str) -> tuple[LlamaConfig, int, int]:
    """(configuration, tokens of a sequence, sequences in a batch) of a model."""
    if name == LARGE:
        c = LlamaConfig()                                   # its defaults are LLaMA 7B
        return c, c.max_position_embeddings, LARGE_BATCH
    size = SIZES[name]
    c = LlamaConfig(vocab_size=size.V, hidden_size=size.D, intermediate_size=size.F, num_hidden_layers=size.L,
                    num_attention_heads=size.H, tie_word_embeddings=True)
    return c, size.T, size.B


def sizes(c: LlamaConfig, T: int, B: int) -> dict[str, int]:
    """The letters of the derivation."""
    return {"B": B, "T": T, "D": c.hidden_size, "H": c.num_attention_heads, "G": c.groups, "K": c.head_width,
            "F": c.intermediate_size, "V": c.vocab_size, "L": c.num_hidden_layers, "E": c.hidden_size}


def letters() -> dict[str, dict[str, int]]:
    """model -> its letters; of the large one, with one sequence."""
    small = {name: sizes(*model(name)) for name in BENCHED}
    c, T, _ = model(LARGE)
    return small | {LARGE: sizes(c, T, 1)}


def evaluated(letters: dict[str, int]) -> dict[str, float]:
    """What each name of the derivation is for these sizes.  Raises ValueError if a line does not hold."""
    run = Run(replace(DERIVATION, symbols=False, whole=letters, sizes={"T": letters["T"]}))
    for outcome in run.steps():
        if outcome.wrong:
            raise ValueError(f"{outcome.step.line}: {outcome.wrong}")
    return {name: float(a.data) for name, a in run.on_numbers.names.items()}


@functools.cache
def counted(name: str, sequences: int | None = None) -> dict[str, float]:
    """The letters and the names of the derivation, of a model; P with an output matrix of its own, if it has one.

    sequences   in a batch; None: those of the model
    """
    c, T, B = model(name)
    letters = sizes(c, T, sequences or B)
    found = letters | evaluated(letters)
    return found | {"P": found["P"] + (0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size)}


def at_once(name: str) -> int:
    """Tokens whose activations are held at the same time: a piece of each shard, as in training/loop.py."""
    c, T, B = model(name)
    rows = max(1, round(AT_ONCE / (T * c.hidden_size)))
    return SHARDS * min(rows, B // SHARDS) * T
