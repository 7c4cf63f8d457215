"""The command plan: one token as a dynamic graph and as a static plan, side by side."""
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import backend, pretrained
from pyllama import memory as arena
from pyllama.cli.output import emit, note
from pyllama.decode import Plan, PlannedSession, plan_of
from pyllama.decode.families import PLANS
from pyllama.decode.plan import Product, bytes_of, described
from pyllama.errors import UserError, counted, with_article
from pyllama.generation.session import DynamicSession, Memory, Session, TargetSession, encoded
from pyllama.op import watching
from pyllama.quantization import decoded_tree
from pyllama.text import special

TOKENS, REPEATS = 16, 20                            # tokens before the measured ones, and how many are measured
LESSON = """\
Both compute the same scores. For the graph, Python calls an op, which checks shapes, chooses a kernel, allocates its
output and wakes the threads; it does so again for every op of every token, because it does not know what comes next.
The plan has done all of this before the first token: only the arithmetic is left, and reading the matrices."""


def plan(model: Path, /, prompt: str = "") -> int:
    """Show what a new token passes through: the dynamic graph of ops, the static plan, and how long each takes.

    Args:
        model: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        prompt: text before the token; of an encoder-decoder, its source (default: 16 times token 0)
    """
    arena.install()
    loaded = pretrained.load(model)
    for sentence in loaded.notes:
        note(sentence)
    config = loaded.config
    if config.model not in PLANS or config.head not in ("lm", "seq2seq"):
        raise UserError(f"{model} is {with_article(config.TYPE)} that does not write token by token; give one that "
                        f"does, such as a llama")
    ids = special.prompt(loaded.require_tokenizer(), prompt) if prompt else [0] * TOKENS
    reads = config.head == "seq2seq"
    tree = decoded_tree(loaded.params)
    memory = encoded(tree, config, [ids]) if reads else None
    before = [config.decoder_start_token_id] if reads else ids[-(config.max_position_embeddings - 1):] or ids
    static = plan_of(config, loaded.params)
    slow = dynamic(tree, config, memory)
    slow.extend([before])
    calls = recorded(lambda: slow.extend([[ids[-1]]]))
    emit(f"the dynamic graph: {counted(len(calls), 'call')} of ops for a token\n")
    show(calls)
    emit(f"\nthe static plan: {counted(len(static.steps), 'step')} for a token, run by one call of C\n")
    show([aligned(step) for step in static.steps])
    emit("")
    for line in sizes(static):
        emit(line)
    emit("")
    if backend.cpu is None:
        emit("The plan does not run here, because the C kernels are not built.")
        return 0
    fast = PlannedSession(loaded.params, config, 1, len(before) + 1, memory)
    fast.extend([before])
    graph, planned = (measured(session, ids[-1]) for session in (slow, fast))
    emit(f"measured with {counted(backend.cpu.threads(), 'thread')}: {graph:.3f} ms a token by the graph, "
         f"{planned:.3f} ms by the plan, {graph / planned:.1f} times as fast\n\n{LESSON}")
    return 0


def dynamic(tree: dict, config: Any, memory: Memory | None) -> Session:
    """A session of one sequence that runs op by op."""
    if memory is not None:
        return TargetSession(tree, config, 1, TOKENS, memory)
    return DynamicSession(tree, config, 1, TOKENS)


def recorded(run: Callable) -> list[str]:
    """The calls of ops in run(): linear  [1 1 288] [864 288] -> [1 1 864]"""
    calls = []

    def watch(op, call, inputs, options):
        y, back = call(*inputs, **options)
        shapes = " ".join(shape(x) for x in inputs if x is not None)
        calls.append(f"{op.name:14}{shapes} -> {' '.join(map(shape, op.each(y)))}")
        return y, back

    with watching(watch):
        run()
    return calls


def shape(x: Any) -> str:
    """[1 1 288]"""
    return f"[{' '.join(map(str, np.shape(x)))}]"


def aligned(step: Any) -> str:
    """product       qkv = norm(x) · [q_proj, k_proj, v_proj]          995,328 bytes"""
    kind, text = described(step)
    size = sum(bytes_of(matrix.weight) for matrix in step.matrices) if isinstance(step, Product) else 0
    return f"{kind:14}{text:52}  {counted(size, 'byte') if size else ''}".rstrip()


def show(lines: list[str]) -> None:
    """Print the lines, those of equal layers once."""
    for count, block in folded(lines):
        if count > 1:
            emit(f"  {count} times:")
        for line in block:
            emit(f"{'    ' if count > 1 else '  '}{line}")


def folded(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(count, block) of the lines: the blocks that repeat are those of the layers.

    >>> from pyllama.cli.plan import folded
    >>> list(folded(["a", "b", "c", "b", "c", "d"]))
    [(1, ['a']), (2, ['b', 'c']), (1, ['d'])]
    """
    blocks = [(0, len(lines)), *((start, size) for size in range(1, len(lines) // 2 + 1)
                                 for start in range(len(lines) - 2 * size + 1))]
    start, size = max(blocks, key=lambda block: (repeats(lines, *block) - 1) * block[1])
    count = repeats(lines, start, size)
    if start:
        yield 1, lines[:start]
    yield count, lines[start:start + size]
    if rest := lines[start + count * size:]:
        yield 1, rest


def repeats(lines: list[str], start: int, size: int) -> int:
    """How often the block of this size at `start` stands there, one behind the other."""
    count = 1
    while lines[start:start + size] == lines[start + count * size:start + (count + 1) * size] != []:
        count += 1
    return count


def sizes(static: Plan) -> Iterator[str]:
    """The buffers, and the bytes that a token reads."""
    yield "buffers, with a row for each new token: " + ", ".join(
        f"{name} {width:,}" for name, width in static.widths.items())
    matrices = sum(bytes_of(matrix.weight) for step in static.steps if isinstance(step, Product)
                   for matrix in step.matrices)
    yield f"a token reads {matrices / 1e6:,.1f} MB of matrices, and of each earlier token its keys and values: " \
          f"{sum(2 * step.groups * step.width for step in static.attention):,} numbers"


def measured(session: Session, token: int) -> float:
    """The milliseconds of a token: the least of several, after one that does not count."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        session.extend([[token]])
        times.append(time.perf_counter() - start)
        session.cut([length - 1 for length in session.lengths])
    return min(times[1:]) * 1e3
