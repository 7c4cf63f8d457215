"""A static plan computes what the dynamic graph computes: for every family that has a plan, in any division of the
tokens into calls, of sequences that come and go."""
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama.decode import PlannedSession, compiled, has_plan
from pyllama.decode.families import plan_of
from pyllama.decode.plan import SCORES, reads, writes
from pyllama.errors import UserError
from pyllama.models import MODELS, transformer
from pyllama.models.config import Dimensions
from pyllama.models.layers import ACTIVATIONS
from pyllama.op import watching
from pyllama.quantization import EncodedArray, decoded_tree, encoded_tree

pytestmark = pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")

V, CONTEXT = 19, 48
PLANNED = [kind for kind, family in MODELS.items() for head in ("lm", "seq2seq") if head in family.config.HEADS]
STRETCHED = [None, {"rope_type": "linear", "factor": 3.0},
             {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}]
VALUES = {                                      # of the configurations' fields, beside every bool
    "num_key_value_heads": [1, 2], "head_dim": [None, 4], "sliding_window": [None, 1, 5, 100],
    "rope_scaling": STRETCHED, "rope_theta": [100.0], "max_window_layers": [0, 1], "position_offset": [0, 2],
    "n_inner": [None, 8], "num_key_value_heads_by_layer": [None, [1], [2, 1]],
    "ranks_by_layer": [None, {"q_proj": [2], "up_proj": [3]},
                       {"k_proj": [0, 2], "gate_proj": [3, 0], "o_proj": [1, 4]},
                       {"v_proj": [2, 1], "gate_proj": [2, 2], "up_proj": [1, 3]}],
    "intermediate_size_by_layer": [None, [3], [5, 8]], "share_layers": [1, 2], "embedding_size": [None, 5],
    "activation_function": sorted(ACTIVATIONS), "positions": ["learned", "sinusoidal"]}


def configured(draw, kind, context=CONTEXT):
    """A random small configuration of a family: its bool fields and those of VALUES, where they fit together."""
    shape = Dimensions(vocab_size=V, context=context, head="seq2seq" if "seq2seq" in MODELS[kind].config.HEADS else
                       "lm", width=draw(st.sampled_from([8, 24])), layers=draw(st.integers(1, 2)),
                       heads=draw(st.sampled_from([2, 4])), dropout=0.0)
    config = MODELS[kind].config.small(shape)
    for field in sorted(fields(config), key=lambda field: field.name):
        values = [False, True] if field.type in (bool, "bool") else VALUES.get(field.name)
        if values:
            try:
                config = replace(config, **{field.name: draw(st.sampled_from(values))})
            except UserError:                   # of a family without this option
                continue
    return config


def randomized(config, dtype="float64"):
    """Parameters with nothing at a value that hides a bug: norms are not one, biases not zero."""
    rng, tree = np.random.default_rng(2), config.model.init(config, 0, "float64")
    return params.rebuild(tree, ((rng.standard_normal(a.shape) * (0.3 if a.ndim > 1 or name.endswith("bias") else 1))
                                 .astype(dtype) for name, a in params.leaves(tree)))


class Writer:
    """A model, with the sources of an encoder-decoder, and its scores by the dynamic graph."""

    def __init__(self, config, batch, dtype="float64"):
        self.config, self.p, self.batch = config, randomized(config, dtype), batch
        self.reads = config.head == "seq2seq"
        rng = np.random.default_rng(3)
        self.sources = rng.integers(0, V, (batch, 5))
        self.mask = (np.arange(5) < rng.integers(1, 6, (batch, 1))).astype(int)

    def session(self, room=3, params=None, **options):
        memory = None
        if self.reads:
            x, _ = transformer.encode(self.sources, self.p["model"], self.config, mask=self.mask)
            memory = x, self.mask
        return PlannedSession(params or self.p, self.config, self.batch, room, memory, **options)

    def begin(self, row):
        """The first token of a text."""
        return [self.config.decoder_start_token_id] if self.reads else []

    def scores(self, tokens, row):
        """The scores [T V] after each of the tokens of a sequence that began as sequence `row`."""
        if not self.reads:
            return self.config.model.logits(np.array([tokens]), self.p, self.config)[0][0]
        labels = np.array([[*tokens[1:], 0]])
        return self.config.model.logits(self.sources[row:row + 1], self.p, self.config, mask=self.mask[row:row + 1],
                                        labels=labels)[0][0]


def near(found, expected):
    assert np.abs(found - expected).max() <= 1e-12 * max(1, np.abs(expected).max())


def some(draw, least, most):
    return draw(st.lists(st.integers(0, V - 1), min_size=least, max_size=most))


@pytest.mark.parametrize("kind", PLANNED)
@given(data=st.data())
def test_a_plan_computes_what_the_dynamic_graph_computes(kind, data):
    draw = data.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ROWS", draw(st.sampled_from([2, 3, 256])))
        writer = Writer(configured(draw, kind), draw(st.integers(1, 3)))
        session = writer.session()
        assert has_plan(writer.config, writer.p)
        texts = [(row, []) for row in range(writer.batch)]          # of each sequence: what it began as, its tokens
        for _ in range(draw(st.integers(1, 4))):
            new = [(writer.begin(row) if not tokens else []) + some(draw, 1, 4) for row, tokens in texts]
            texts = [(row, tokens + more) for (row, tokens), more in zip(texts, new, strict=True)]
            every = draw(st.booleans())
            found = session.extend(new, every)
            assert session.lengths == [len(tokens) for _, tokens in texts]
            for z, more, (row, tokens) in zip(found, new, texts, strict=True):
                near(z, writer.scores(tokens, row)[-len(more):] if every else writer.scores(tokens, row)[-1])
            if draw(st.booleans()):
                kept = draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
                session.keep(kept)
                texts = [texts[i] for i in kept]
            if draw(st.booleans()):
                lengths = [draw(st.integers(writer.reads, len(tokens))) for _, tokens in texts]
                session.cut(lengths)
                texts = [(row, tokens[:length]) for (row, tokens), length in zip(texts, lengths, strict=True)]


EACH = pytest.mark.parametrize("kind", PLANNED)
THREADS = 1, 2, 3


def seen(kind, dtype="float32", batch=3, context=CONTEXT):
    """A writer of a family in one configuration, wide enough that three threads have work."""
    head = "seq2seq" if "seq2seq" in MODELS[kind].config.HEADS else "lm"
    return Writer(MODELS[kind].config.small(Dimensions(vocab_size=V, context=context, head=head, width=96, layers=2,
                                                       heads=3, dropout=0.0)), batch, dtype)


@EACH
def test_the_bits_do_not_depend_on_the_number_of_threads(kind):
    before, found = backend.cpu.threads(), []
    tokens = np.random.default_rng(4).integers(0, V, (3, 30)).tolist()
    for threads in THREADS:
        backend.cpu.set_threads(threads)
        try:
            session = seen(kind).session()
            prompt = [z.copy() for z in session.extend(tokens, every=True)]
            found.append([*prompt, *(session.extend([[i]] * 3).copy() for i in range(5))])
        finally:
            backend.cpu.set_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


@EACH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bits_of_a_tokens_scores_do_not_depend_on_its_company(kind, dtype):
    """One by one, or up to 16 at a time: beside those before and after it, and those of other sequences."""
    writer = seen(kind, dtype, batch=4)
    tokens = np.random.default_rng(4).integers(0, V, (4, 12))
    alone = writer.session()
    expected = np.stack([alone.extend(tokens[:, t:t + 1].tolist()).copy() for t in range(12)], axis=1)
    for step in (2, 4):
        session = writer.session()
        for t in range(0, 12, step):
            scores = session.extend(tokens[:, t:t + step].tolist(), every=True)
            assert np.stack(scores).tobytes() == expected[:, t:t + step].tobytes()
    session.keep([2])
    session.cut([3])
    assert session.extend([tokens[2, 3:].tolist()], every=True)[0].tobytes() == expected[2, 3:].tobytes()


@EACH
def test_no_buffer_is_written_where_the_contents_of_another_are_needed(kind):
    """Buffers share memory."""
    writer = seen(kind)
    plan, holds = plan_of(writer.config, writer.p), {}
    memory = {name: i for i, group in enumerate(plan.groups) for name in group}
    for step in plan.steps:
        assert {memory[name]: name for name in reads(step)}.items() <= holds.items()
        used = {*reads(step), *writes(step)} - {SCORES}
        assert len({memory[name] for name in used}) == len(used)
        holds |= {memory[name]: name for name in writes(step) - {SCORES}}
    assert len(plan.groups) < len(memory)


def accurate(writer, tree=None):
    """Is a plan over the tree as accurate as the dynamic graph?  Both add the same numbers, in other orders."""
    tokens = writer.begin(0) + np.random.default_rng(4).integers(0, V, 30).tolist()
    found, = writer.session(params=tree).extend([tokens], every=True)
    dynamic = writer.scores(tokens, 0)
    writer.p = params.rebuild(writer.p, (a.astype(np.float64) for _, a in params.leaves(writer.p)))
    exact = writer.scores(tokens, 0)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() <= 4 * np.abs(dynamic - exact).max()


@EACH
def test_in_float32_a_plan_is_as_accurate_as_the_dynamic_graph(kind):
    accurate(seen(kind, batch=1))


def in_blocks(x):
    """x rounded as the products with q8_0 and q4_0 round it: 255 steps in each block of 32 numbers."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    return (np.rint(blocks / step) * step).astype(np.float32).reshape(x.shape)


def in_a_byte(x):
    """Keys or values, rounded as a cache of int8 keeps them: 255 steps in each head and position."""
    step = np.abs(x).max(axis=-1, keepdims=True) / 127
    return (np.rint(x / step) * step).astype(np.float32)


def in_halves(x):
    """Keys or values, rounded as a cache of f16 keeps them."""
    return x.astype(np.float16).astype(np.float32)


def rounding(how):
    """The dynamic graph rounds keys and values, but for those of a memory."""
    def watch(op, call, inputs, options):
        if op.name == "attention" and options.get("causal"):
            inputs = inputs[0], how(inputs[1]), how(inputs[2]), *inputs[3:]
        return call(*inputs, **options)

    return watching(watch)


def follows(found, rounded, exact):
    """Does the plan round as the dynamic graph does that rounds with NumPy?  Scores [N T V] of N texts.

    A number in the middle between two steps may go to the other side in one of them, and then change the rest of a
    text, but by less than all roundings together do.
    """
    found, rounded, exact = map(np.stack, (found, rounded, exact))
    apart, effect = (np.abs(z - rounded).max(axis=(1, 2)) for z in (found, exact))
    assert np.median(apart) < np.median(effect) / 3
    assert apart.max() < effect.max()


def texts(writer):
    """Twenty texts of three tokens."""
    return [(writer.begin(0) + tokens)[:3] for tokens in np.random.default_rng(4).integers(0, V, (20, 3)).tolist()]


@EACH
@pytest.mark.parametrize("cache", ["f16", "int8"])
def test_a_small_cache_rounds_keys_and_values(kind, cache):
    writer = seen(kind, batch=20)
    session = writer.session(cache=cache)
    found = np.stack([session.extend([[text[t]] for text in texts(writer)]).copy() for t in range(3)], axis=1)
    exact = [writer.scores(text, row) for row, text in enumerate(texts(writer))]
    with rounding(in_a_byte if cache == "int8" else in_halves):
        follows(found, [writer.scores(text, row) for row, text in enumerate(texts(writer))], exact)
    session.keep([0])
    other = seen(kind, batch=20).session(cache=cache)
    other.keep([0])
    other.restore(session.state())
    assert np.allclose(other.extend([[1]]), session.extend([[1]]), rtol=0, atol=1e-5 * np.abs(exact).max())


OF_MEMORY = re.compile(r"^model\.encoder\.|encoder_attn\.[kv]_proj")         # computed before, from plain arrays


def mixed(plain, config, kinds):
    """The tree with encoded matrices, one in each format after the other."""
    trees = [encoded_tree(plain, kind, config) for kind in kinds]
    leaves = zip(*([leaf for _, leaf in params.leaves(tree)] for tree in trees), strict=True)
    return params.rebuild(plain, (each[i % len(each)] for i, each in enumerate(leaves)))


@EACH
@pytest.mark.parametrize("kinds", [["f16"], ["bf16"]], ids=str)
def test_matrices_in_16_bits_cost_no_accuracy(kind, kinds):
    writer = seen(kind, batch=1)
    tree = mixed(writer.p, writer.config, kinds)
    writer.p = decoded_tree(tree)
    accurate(writer, tree)


@EACH
@pytest.mark.parametrize("kinds", [["q8_0"], ["q4_0"], ["q4_0", "q8_0", "bf16"]], ids=str)
def test_inputs_of_matrices_in_blocks_are_rounded(kind, kinds):
    writer = seen(kind, batch=20)
    tree = mixed(writer.p, writer.config, kinds)
    writer.p = decoded_tree(tree)
    encoded = [a for (name, leaf), (_, a) in zip(params.leaves(tree), params.leaves(writer.p), strict=True)
               if isinstance(leaf, EncodedArray) and leaf.kind.startswith("q") and not OF_MEMORY.search(name)]

    def watch(op, call, inputs, options):
        if op.name == "linear" and any(inputs[1] is a or inputs[1].base is a for a in encoded):
            inputs = in_blocks(inputs[0]), *inputs[1:]
        return call(*inputs, **options)

    exact = [writer.scores(text, row) for row, text in enumerate(texts(writer))]
    with watching(watch):
        rounded = [writer.scores(text, row) for row, text in enumerate(texts(writer))]
    follows(writer.session(params=tree).extend(texts(writer), every=True), rounded, exact)


def test_sessions_run_in_several_python_threads_at_once():
    """One has the helpers of the kernels; the others run alone meanwhile."""
    def run(_):
        session = seen("llama", batch=1).session()
        return np.stack([session.extend([[i]])[0].copy() for i in range(V)])

    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(run, range(8))]
    assert all((z == results[0]).all() for z in results)


def test_threads_may_share_a_session_whose_cache_grows():
    """Their calls run one after the other: C must not read a cache that another call replaces."""
    session = seen("llama", batch=1).session(room=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: session.extend([[i % V] * 20]), range(60)))
    assert session.lengths == [1200]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_session_continues_in_a_forked_process():
    """The helpers do not survive a fork, and are not waited for."""
    session = seen("llama", batch=1).session()
    session.extend([[3, 1]])
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, session.extend([[4]]).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 2**16) == session.extend([[4]]).tobytes()
    for end in (read, write):
        os.close(end)


def test_what_cannot_be_extended_is_refused_and_changes_nothing():
    writer = seen("gpt2", batch=2)
    session = writer.session()
    session.extend([[3], [1, 4]])
    for tokens, error, message in (([[V], [1]], IndexError, f"token id {V} is outside the vocabulary"),
                                   ([[1], [-1]], IndexError, "token id -1 is outside"),
                                   ([[1], [1] * 47], UserError, r"49 tokens, but the model has only 48 positions"),
                                   ([[1]], ValueError, "1 lists of new tokens for 2 sequences"),
                                   ([[1], []], ValueError, "give each at least one")):
        with pytest.raises(error, match=message):
            session.extend(tokens)
        assert session.lengths == [1, 2]
    scores = session.extend([[5], [9]])[1]
    assert np.allclose(scores, writer.scores([1, 4, 9], 0)[-1], atol=1e-5)


@EACH
def test_arrays_may_lie_in_memory_in_any_way(kind):
    """A table whose columns are contiguous, matrices that are transposed, numbers that are apart."""
    writer = seen(kind, batch=1)
    expected = writer.session().extend([[*writer.begin(0), 3, 1]], every=True)[0].copy()
    for lies in np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a[::-1].copy()[::-1]:
        tree = params.rebuild(writer.p, (lies(a) for _, a in params.leaves(writer.p)))
        found, = writer.session(params=tree).extend([[*writer.begin(0), 3, 1]], every=True)
        assert np.allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@EACH
def test_an_array_of_another_shape_is_refused(kind):
    """C would read past its end."""
    writer = seen(kind, batch=1)
    named = {name: a for name, a in params.leaves(writer.p) if not name.startswith("model.encoder.")}
    for name, a in named.items():
        positions = name.endswith(("wpe.weight", "embed_positions.weight"))         # of which there may be any number
        for axis in range(positions, a.ndim):
            fewer = np.take(a, range(a.shape[axis] - 3), axis)
            tree = params.rebuild(writer.p, (fewer if each == name else leaf for each, leaf in params.leaves(writer.p)))
            with pytest.raises((ValueError, IndexError), match=r"shape|columns|array|axis"):
                writer.session(params=tree)


def test_a_cache_of_few_bits_is_for_float32():
    with pytest.raises(ValueError, match="choose reals, or f16 or int8 for float32"):
        seen("llama", "float64").session(cache="f16")


@pytest.mark.parametrize(("kind", "head"), [("bert", "masked_lm"), ("llama", "classification"), ("lstm", "tagging")])
def test_only_a_writer_with_arrays_for_the_kernels_has_a_plan(kind, head):
    config = MODELS[kind].config.small(Dimensions(vocab_size=V, context=8, head=head, width=8, heads=2))
    assert not has_plan(config, config.model.init(config))
    writer = seen("llama", batch=1)
    assert has_plan(writer.config, writer.p)
    with backend.use("numpy"):
        assert not has_plan(writer.config, writer.p)
    half = params.rebuild(writer.p, (a.astype(np.float16) for _, a in params.leaves(writer.p)))
    double = params.rebuild(writer.p, (a.astype(np.float64) for _, a in params.leaves(writer.p)))
    assert not has_plan(writer.config, half)
    assert has_plan(writer.config, double)
    assert not has_plan(writer.config, double | {"model": encoded_tree(writer.p, "f16", writer.config)["model"]})
