"""A plan reads a long prompt in blocks, and computes what the dynamic graph computes."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend
from pyllama.decode import compiled
from tests.test_decode import EACH, THREADS, V, Writer, configured, follows, mixed, near, seen

pytestmark = pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")

LONG = 700                                      # tokens of a context


@EACH
@given(data=st.data())
def test_a_plan_reads_long_texts_as_the_dynamic_graph_does(kind, data):
    """More tokens than a block of queries has, and more keys than a strip, beside sequences of other lengths."""
    draw, rng = data.draw, np.random.default_rng(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ROWS", draw(st.sampled_from([50, 1000])))
        writer = Writer(configured(draw, kind, LONG), draw(st.integers(1, 3)))
        session = writer.session()
        texts = [writer.begin(row) for row in range(writer.batch)]
        for _ in range(draw(st.integers(1, 3))):
            lengths = [draw(st.sampled_from([1, 2, 20, 90, 200])) for _ in texts]
            texts = [text + rng.integers(0, V, length).tolist() for text, length in zip(texts, lengths, strict=True)]
            new = [text[known:] for text, known in zip(texts, session.lengths, strict=True)]
            for row, (z, more) in enumerate(zip(session.extend(new, every=True), new, strict=True)):
                near(z, writer.scores(texts[row], row)[-len(more):])


@EACH
@pytest.mark.parametrize("cache", ["f16", "int8"])
def test_a_small_cache_reads_a_long_text_as_it_reads_token_by_token(kind, cache):
    writer = seen(kind, batch=3, context=LONG)
    tokens = np.random.default_rng(4).integers(0, V, (3, 200))

    def scores(cache, step):
        session = writer.session(cache=cache)
        return np.concatenate([np.stack(session.extend(tokens[:, t:t + step].tolist(), every=True))
                               for t in range(0, 200, step)], axis=1)

    follows(scores(cache, 200), scores(cache, 5), scores("reals", 200))


@EACH
def test_the_bits_of_a_long_text_do_not_depend_on_the_number_of_threads(kind):
    """In blocks of queries, and with matrices in blocks, which some processors multiply in slabs."""
    writer, before, found = seen(kind, context=LONG), backend.cpu.threads(), []
    tree, tokens = mixed(writer.p, writer.config, ["q8_0", "f16"]), np.random.default_rng(4).integers(0, V, (3, 200))
    for threads in THREADS:
        backend.cpu.set_threads(threads)
        try:
            found.append(writer.session(params=tree).extend(tokens.tolist()).tobytes())
        finally:
            backend.cpu.set_threads(before)
    assert len({*found}) == 1


def test_a_key_that_is_not_finite_is_not_finite_in_a_byte():
    """Or the scores of a damaged model would look right."""
    writer = seen("llama", batch=1)
    writer.p["model"]["embed_tokens"]["weight"][2] = np.nan
    session, restored = writer.session(cache="int8"), writer.session(cache="int8")
    session.extend([[2]])
    restored.restore(session.state())
    assert np.isnan(session.extend([[1]])).all()
    assert np.isnan(restored.extend([[1]])).all()
