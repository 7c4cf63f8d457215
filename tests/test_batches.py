"""Texts of a batch: each depends on its own prompt alone, whatever the strategy; targets are sampled as texts are."""
import contextlib
from dataclasses import replace

import numpy as np
import pytest

from pyllama import backend
from pyllama.generation import GenerationConfig, Rules, choice, generate, stream
from pyllama.generation.window import Window
from pyllama.models import bart, transformer
from pyllama.models.layers import token_scores
from pyllama.params import leaves, rebuild
from pyllama.rng import generator
from tests import chains
from tests.test_generate import CHARACTERS, each_case, model
from tests.test_models import BART, randomized

PROMPTS = [[3, 1, 4, 1], [2], [9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [0, 0, 0]]
STRATEGIES = {
    "greedy": GenerationConfig(max_new_tokens=14, output_scores=True),
    "sampling": GenerationConfig(max_new_tokens=14, do_sample=True, num_return_sequences=2, output_scores=True),
    "beams": GenerationConfig(max_new_tokens=14, num_beams=3, num_return_sequences=2),
}
SMALL = bart.BartConfig(**BART | {"vocab_size": 19, "max_position_embeddings": 30})


def numbers(results):
    """The scores of results, one after another."""
    return np.concatenate([np.ravel(result.scores if result.score is None else result.score) for result in results])


def without_scores(results):
    return [replace(result, score=None, scores=None) for result in results]


@each_case
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kernels", ["c", "numpy"])
def test_a_text_is_the_same_alone_and_in_a_batch(case, strategy, kernels):
    """To rounding, with a plan and op by op; windows slide at different steps, and texts end at different steps."""
    p, c = model(case)
    c, settings = replace(c, eos_token_id=[5, 7]), STRATEGIES[strategy]
    with backend.use("numpy") if kernels == "numpy" else contextlib.nullcontext():
        together = generate(p, c, PROMPTS, CHARACTERS, settings)
        alone = [result for prompt in PROMPTS for result in generate(p, c, [prompt], CHARACTERS, settings)]
    assert without_scores(together) == without_scores(alone)
    np.testing.assert_allclose(numbers(together), numbers(alone), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_a_plan_the_bits_are_the_same_alone_and_in_a_batch(strategy, dtype):
    """While no pass has more than 16 rows."""
    p, c = model("gqa")
    p = rebuild(p, (a.astype(dtype) for _, a in leaves(p)))
    prompts, settings = [*PROMPTS[:2], PROMPTS[2][:8], PROMPTS[3]], replace(STRATEGIES[strategy], max_new_tokens=8)
    alone = [result for prompt in prompts for result in generate(p, c, [prompt], settings=settings)]
    assert generate(p, c, prompts, settings=settings) == alone


def test_copies_of_a_prompt_are_read_once(monkeypatch):
    p, c = model("gqa")
    passes = []
    extend = Window.extend
    monkeypatch.setattr(Window, "extend", lambda self, tokens, every=False:
                        passes.append([*tokens]) or extend(self, tokens, every))
    settings = GenerationConfig(max_new_tokens=2, do_sample=True, num_return_sequences=2)
    generate(p, c, [[3, 1], [4], [3, 1]], settings=settings)
    assert passes[0] == [[3, 1], [4]]
    assert len(passes[1]) == 6


# Encoder-decoders

def naive(p, c, source, choose, count):
    """A target without cache or batch: all of it is decoded for every token."""
    known = [c.decoder_start_token_id]
    memory, _ = transformer.encode(np.array([source]), p["model"], c)
    head = transformer.head(p, c)
    while len(known) == 1 or (len(known) <= count and known[-1] != c.eos_token_id):
        x, _ = transformer.decode(np.array([known]), memory, p["model"], c)
        known.append(choose(token_scores(x[0, -1], *head)[0], known))
    return known[1:]


def test_sampled_targets_are_the_naive_loop_over_the_distribution():
    p, settings = randomized(bart, SMALL), GenerationConfig(max_new_tokens=12, do_sample=True, top_k=7, seed=3)
    for source in ([3, 1, 4], [7]):
        rng = generator(3, "generate", 0, *source)

        def choose(z, known, rng=rng):
            return int((rng.random() >= np.cumsum(choice.distribution(z, settings))).sum())

        assert generate(p, SMALL, [source], settings=settings)[0].ids == naive(p, SMALL, source, choose, 12)


def test_greedy_targets_are_the_chain_of_the_likeliest():
    p = randomized(bart, SMALL)
    for source in ([3, 1, 4], [7]):
        wanted = naive(p, SMALL, source, lambda z, known: int(z.argmax()), 12)
        assert generate(p, SMALL, [source], settings=GenerationConfig(max_new_tokens=12))[0].ids == wanted


def test_sampled_targets_are_the_same_alone_and_in_a_batch():
    p, sources = randomized(bart, SMALL), [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    settings = GenerationConfig(max_new_tokens=12, do_sample=True, num_return_sequences=3)
    together = generate(p, SMALL, sources, settings=settings)
    assert together == [result for source in sources for result in generate(p, SMALL, [source], settings=settings)]
    assert len({tuple(result.ids) for result in together}) > 3


def test_a_target_ends_where_its_positions_end():
    c = replace(SMALL, max_position_embeddings=7)
    p = randomized(bart, c)
    for settings in (GenerationConfig(), GenerationConfig(num_beams=2), GenerationConfig(do_sample=True)):
        result, = generate(p, c, [[3, 1, 4]], settings=settings, rules=Rules(min_new_tokens=50))
        assert (len(result.ids), result.finish_reason) == (7, "length")


# What a search has in common with the other strategies

def test_beams_end_at_a_stop_string_and_are_shown_in_pieces():
    writer = chains.model()
    ids = writer.tokenizer.encode("a").tolist()
    settings = GenerationConfig(num_beams=3, num_return_sequences=2, stop_strings=("e",), max_new_tokens=8)
    model, pieces = (writer.params, writer.config), []
    results = generate(*model, [ids], writer.tokenizer, settings, lambda *call: pieces.append(call))
    assert (results[0].text, results[0].finish_reason) == ("bcd", "stop")
    for i, result in enumerate(results):
        assert [token for row, token, _ in pieces if row == i] == result.ids
        assert "".join(piece for row, _, piece in pieces if row == i) == result.text
    assert "".join(stream(*model, ids, writer.tokenizer, settings)) == results[0].text


def test_the_end_tokens_may_be_given():
    writer = chains.model()
    C, E = (chains.TOKENS.index(letter) for letter in "ce")
    assert writer.generate("a", eos_token_id=C) == "abc"
    assert writer.generate("a", eos_token_id=[E, C]) == "abc"
    assert writer.generate("a", eos_token_id=[E]) == "abcde"
    assert writer.generate(["a", "b"], num_beams=2, num_return_sequences=2, eos_token_id=C)[0] == "abc"


def test_the_scores_of_a_text_are_those_of_its_tokens():
    """Without rules; with a temperature, of the distribution that it was drawn from."""
    p, c = model("gqa")
    for settings in (GenerationConfig(max_new_tokens=8), GenerationConfig(max_new_tokens=8, do_sample=True,
                                                                          temperature=0.7)):
        assert generate(p, c, [[3, 1]], settings=settings)[0].scores is None
        result, = generate(p, c, [[3, 1]], settings=replace(settings, output_scores=True))
        z, _ = c.model.logits(np.array([[3, 1, *result.ids]]), p, c)
        z = z[0, 1:-1] / settings.temperature
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(result.scores, log_p[np.arange(8), result.ids], rtol=1e-10)
