"""A static plan computes what the dynamic graph computes: for every family that has a plan, in any division of the
tokens into calls, of sequences that come and go."""
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama.decode import PlannedSession, compiled, has_plan
from pyllama.errors import UserError
from pyllama.models import MODELS, transformer
from pyllama.models.config import Dimensions
from pyllama.models.layers import ACTIVATIONS

pytestmark = pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")

V, CONTEXT = 19, 48
PLANNED = [kind for kind, family in MODELS.items() for head in ("lm", "seq2seq") if head in family.config.HEADS]
STRETCHED = [None, {"rope_type": "linear", "factor": 3.0},
             {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}]
VALUES = {                                      # of the configurations' fields, beside every bool
    "num_key_value_heads": [1, 2], "head_dim": [None, 4], "sliding_window": [None, 1, 5], "rope_scaling": STRETCHED,
    "rope_theta": [100.0], "max_window_layers": [0, 1], "position_offset": [0, 2], "n_inner": [None, 8],
    "activation_function": sorted(ACTIVATIONS), "positions": ["learned", "sinusoidal"]}


def configured(draw, kind):
    """A random small configuration of a family: its bool fields and those of VALUES, where they fit together."""
    shape = Dimensions(vocab_size=V, context=CONTEXT, head="seq2seq" if "seq2seq" in MODELS[kind].config.HEADS else
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

    def session(self, room=3, **options):
        memory = None
        if self.reads:
            x, _ = transformer.encode(self.sources, self.p["model"], self.config, mask=self.mask)
            memory = x, self.mask
        return PlannedSession(self.p, self.config, self.batch, room, memory, **options)

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
