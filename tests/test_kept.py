"""A session that is kept from one prompt to the next; how a session keeps keys and values."""
import numpy as np
import pytest

import pyllama
from pyllama import backend
from pyllama.decode import PlannedSession
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, generate
from pyllama.generation.kept import Kept
from pyllama.generation.window import Window

CONTEXT = 40
PROMPTS = [[5, 3, 7], [5, 3, 7, 1, 2], [5, 3, 9], [4], [4, 4], list(range(30)), [5, 3]]


@pytest.fixture(scope="module")
def model():
    return pyllama.create("llama", "python-docs", hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                          max_position_embeddings=CONTEXT, dtype="float64")


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"speculation": "off"}, {"num_beams": 2},
                                     {"speculation": 4, "max_new_tokens": 60}])
def test_the_texts_are_those_of_a_new_session(model, options):
    settings, kept, text = GenerationConfig(**{"max_new_tokens": 6, **options}), Kept(), []
    for prompt in [*PROMPTS, *PROMPTS]:
        for ids in prompt, [*text[:20], *prompt]:                       # the second continues the text before
            new, = generate(model.params, model.config, [ids], settings=settings)
            again, = generate(model.params, model.config, [ids], settings=settings, kept=kept)
            assert again.ids == new.ids
            text = [*ids, *again.ids]


def test_only_what_differs_is_read(model, monkeypatch):
    counts, extend, follow = [], Window.extend, Window.follow
    monkeypatch.setattr(Window, "extend", lambda self, tokens, every=False: counts.append(len(tokens[0])) or
                        extend(self, tokens, every))

    def followed(self, *arguments):
        before = len(counts)
        ids, scores = follow(self, *arguments)
        if len(counts) == before:                                       # a plan, which reads a token for each
            counts.extend([1] * len(ids))
        return ids, scores

    monkeypatch.setattr(Window, "follow", followed)
    kept, settings = Kept(), GenerationConfig(max_new_tokens=3, speculation="off")
    first, = generate(model.params, model.config, [[5, 3, 7]], settings=settings, kept=kept)
    generate(model.params, model.config, [[5, 3, 7, *first.ids, 8, 9]], settings=settings, kept=kept)
    assert counts == [3, 1, 1, 3, 1, 1]                                 # the last of its tokens was never read


def test_a_new_session_begins_with_the_prompt_cache(model, tmp_path, monkeypatch):
    settings = GenerationConfig(max_new_tokens=3, prompt_cache=str(tmp_path / "prompt"))
    first, = generate(model.params, model.config, [[5, 3, 7, 1]], settings=settings, kept=Kept())
    counts, extend = [], Window.extend
    monkeypatch.setattr(Window, "extend", lambda self, tokens, every=False: counts.append(len(tokens[0])) or
                        extend(self, tokens, every))
    again, = generate(model.params, model.config, [[5, 3, 7, 1]], settings=settings, kept=Kept())
    assert (again.ids, counts[0]) == (first.ids, 1)


def test_an_answer_that_was_interrupted_leaves_nothing_wrong(model):
    def stop(number, token, piece):
        if len(seen := [*seen_tokens, token]) == 3:
            raise KeyboardInterrupt
        seen_tokens[:] = seen

    for options in {}, {"speculation": 4}, {"do_sample": True}:
        kept, settings = Kept(), GenerationConfig(max_new_tokens=9, **options)
        seen_tokens: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            generate(model.params, model.config, [[5, 3, 7]], settings=settings, on_token=stop, kept=kept)
        prompt = [5, 3, 7, *seen_tokens, 2]
        again, new = (generate(model.params, model.config, [prompt], settings=settings, kept=each)[0]
                      for each in (kept, None))
        assert np.array_equal(again.ids, new.ids)


@pytest.mark.skipif(backend.cpu is None, reason="the C kernels are not built")
def test_a_generation_may_keep_keys_and_values_in_fewer_bits(monkeypatch):
    kinds, create = [], PlannedSession.__init__
    monkeypatch.setattr(PlannedSession, "__init__", lambda self, *args: kinds.append(args[-1]) or create(self, *args))
    model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    texts = [model.generate("The", max_new_tokens=5, cache=cache) for cache in ("full", "f16", "int8")]
    assert kinds == ["reals", "f16", "int8"]
    texts += [each.generate("The", max_new_tokens=5) for each in (model, model.quantize("f16"))]
    assert kinds[3:] == ["reals", "f16"]                    # as it was computed, unless matrices are rounded already
    assert all(text.startswith("The") for text in texts)
    with pytest.raises(UserError, match='cache is \'int4\'; it must be "auto", "full", "f16" or "int8"'):
        model.generate("The", cache="int4")
    with backend.use("numpy"), pytest.raises(UserError, match="cache f16 needs a model of float32 that runs as a plan"):
        model.generate("The", cache="f16")
