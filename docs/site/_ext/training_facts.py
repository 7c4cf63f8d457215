"""What the chapter on training says, computed while the site is built."""
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
from docutils import nodes
from kept import keep
from messages import plain, table, translated

from pyllama.models.llama_config import LlamaConfig
from pyllama.text.tokens import Batch, joined
from pyllama.training.examples import IGNORE
from pyllama.training.loop import Settings, State, gradient, start, train
from pyllama.training.schedule import SCHEDULES

# --- the learning rate ------------------------------------------------------------------------------------------------

RUN = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_steps": 100, "max_steps": 1000, "decay_steps": 300}
WIDTH, HEIGHT, LEFT, BELOW = 200, 100, 24, 18


def schedules() -> str:
    """A small diagram for each schedule: the rate of every step."""
    return f'<div class="schedules">{"".join(map(diagram, SCHEDULES))}</div>'


def diagram(name: str) -> str:
    end, warm = RUN["max_steps"], RUN["warmup_steps"]
    points = " ".join(f"{x(step):.1f},{y(SCHEDULES[name](step, **RUN)):.1f}" for step in range(0, end + 1, 5))
    ticks = "".join(f'<text x="{x(step):.0f}" y="{HEIGHT + BELOW - 3}" text-anchor="middle">{text}</text>'
                    for step, text in ((0, "0"), (warm, "W"), (end, "N")))
    levels = "".join(f'<line class="level" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(rate):.0f}" y2="{y(rate):.0f}"/>'
                     f'<text x="{LEFT - 5}" y="{y(rate) + 4:.0f}" text-anchor="end">{text}</text>'
                     for rate, text in ((RUN["learning_rate"], "η"), (RUN["min_lr"], "η₀")))
    return (f'<figure><svg viewBox="0 0 {LEFT + WIDTH + 8} {HEIGHT + BELOW}" role="img" aria-label="{name}">{levels}'
            f'{ticks}<polyline points="{points}"/></svg><figcaption><code>{name}</code></figcaption></figure>')


def x(step: float) -> float:
    return LEFT + WIDTH * step / RUN["max_steps"]


def y(rate: float) -> float:
    return HEIGHT - 0.9 * HEIGHT * rate / RUN["learning_rate"]


# --- accumulation -----------------------------------------------------------------------------------------------------

CONFIG = LlamaConfig(vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                     max_position_embeddings=16)
TARGETS = 3, 12, 5, 9, 2, 12, 7, 4                          # of the rows of the batch
CUTS = 1, 2, 4, 8                                           # numbers of micro-batches
PIECES = "Micro-batches", "Sum over all targets", "Mean of the means"
CLOSE = len(TARGETS) * max(TARGETS) * np.finfo(np.float64).eps      # a rounding for each target
FAR = 0.01


def accumulation(where: str, counted: bool) -> nodes.table:
    """How far the gradient of micro-batches is from that of the batch, added in two ways; counted: compute it."""
    rows = keep("accumulation", lambda: [[k, *distances(k)] for k in CUTS]) if counted else []
    return table((translated(text, where) for text in PIECES),
                 ([plain(k), plain(small(right)), plain(f"{wrong:.2f}")] for k, right, wrong in rows), "numbers")


def distances(k: int) -> list[float]:
    """Of k micro-batches: the distance of what pyllama computes, and of the mean of means, in shares of the gradient.

    Raises ValueError if the chapter says something else.
    """
    whole = of_rows(slice(None))
    right = of_rows(slice(None), len(TARGETS) // k)
    parts = [of_rows(slice(first, first + len(TARGETS) // k)) for first in range(0, len(TARGETS), len(TARGETS) // k)]
    found = [float(np.linalg.norm(one - whole) / np.linalg.norm(whole)) for one in (right, sum(parts) / k)]
    if found[0] > CLOSE or (found[1] > FAR) != (k > 1):
        raise ValueError(f"{k} micro-batches: the gradients are {found} from that of the batch")
    return found


def of_rows(rows: slice, at_once: int = 0) -> np.ndarray:
    """The gradient of the mean loss over the targets of these rows, computed so many rows at once; 0: all."""
    ids = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(len(TARGETS), max(TARGETS) + 1))
    labels = np.where(np.arange(ids.shape[1]) <= np.array(TARGETS)[:, None], ids, IGNORE)[rows]
    settings = Settings(dtype="float64", shards=1, micro_batch_size=at_once)
    state, grads = start(CONFIG, settings), start(CONFIG, settings)
    batch = Batch({"ids": ids[rows], "labels": labels}, int(np.sum(labels[:, 1:] != IGNORE)))
    gradient(state, batch, settings, [grads.p])
    return grads.flat


# --- stopping and going on --------------------------------------------------------------------------------------------

STEPS, SAVED = 6, 3
DROPPING = replace(CONFIG, resid_pdrop=0.1)
TEXT = joined([np.random.default_rng(0).integers(CONFIG.vocab_size, size=200).astype(np.uint16)])
SETTINGS = Settings(max_steps=STEPS, warmup_steps=2, batch_size=4, block_size=8, shards=1)
RESULTS = "Forgotten when the run stops", "Largest difference of a weight after step 6"


def forget_means(state: State) -> None:
    for name in state.optimizer.vectors:
        getattr(state.optimizer, name).fill(0)


def forget_age(state: State) -> None:
    state.optimizer.t = 0


def forget_step(state: State) -> None:
    state.step = 0


def forget_digits(state: State) -> None:
    state.flat[:] = state.flat.astype(np.float16)


FORGOTTEN: dict[str, Callable[[State], Settings | None]] = {
    "nothing": lambda state: None,
    "the means `m` and `v` of AdamW": forget_means,
    "the number of steps that AdamW has done": forget_age,
    "the number of the step: rate, rows and dropout begin again": forget_step,
    "the seed of rows and dropout": lambda state: replace(SETTINGS, seed=0),
    "half of the bits of the weights": forget_digits}


def resuming(where: str, counted: bool) -> nodes.table:
    """The largest difference between a run that stopped and one that did not, for each thing that was forgotten.

    counted     compute it
    """
    rows = (keep("resuming", lambda: [[what, difference(what)] for what in FORGOTTEN]) if counted
            else [[what, 0.0] for what in FORGOTTEN])
    return table((translated(text, where) for text in RESULTS),
                 ([translated(what, where), plain(small(size))] for what, size in rows), "numbers")


def difference(what: str) -> float:
    """Raises ValueError if something is different although nothing is forgotten, or the other way round."""
    saved = continued(start(DROPPING, SETTINGS), SAVED)
    state = start(DROPPING, SETTINGS, saved.p)
    state.optimizer.load(saved.optimizer.state())
    state.step = saved.step
    settings = FORGOTTEN[what](state) or SETTINGS
    continued(state, STEPS - SAVED, settings)
    whole = continued(start(DROPPING, SETTINGS), STEPS)
    found = float(np.max(np.abs(state.flat - whole.flat)))
    if (found == 0) != (what == "nothing"):
        raise ValueError(f"without {what}, the largest difference is {found}")
    return found


def continued(state: State, steps: int, settings: Settings = SETTINGS) -> State:
    """The state after so many more steps."""
    for _ in islice(train(state, TEXT, settings), steps):
        pass
    return state


def small(number: float) -> str:
    return f"{number:.0e}" if number else "0"
