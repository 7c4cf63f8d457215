"""Generation compared with its definition, without cache, batch or streaming.  Sampling: test_sampling.py."""
import functools
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, Result, choice, generate, session, stream
from pyllama.generation.text import Text
from pyllama.models import gpt2, llama
from pyllama.models.kv_cache import Cache, new_cache
from pyllama.rng import generator
from pyllama.text.tokenizer import Tokenizer
from tests import chains

SMALL = dict(vocab_size=19, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
             max_position_embeddings=16, bos_token_id=1)
CASES = {
    "gqa": llama.LlamaConfig(**SMALL, num_key_value_heads=2),
    "tied-meta": llama.LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=True, rope_interleaved=True),
    "window-bias": llama.LlamaConfig(**SMALL, sliding_window=3, attention_bias=True, mlp_bias=True),
    "scaled": llama.LlamaConfig(**SMALL, rope_scaling={"rope_type": "linear", "factor": 3.0}, rope_theta=100.0),
    "shared": llama.LlamaConfig(**SMALL | {"num_hidden_layers": 3}, tie_word_embeddings=True, share_layers=[1, 2, 1],
                                embedding_size=5),
    "uneven": llama.LlamaConfig(**SMALL, num_key_value_heads=3, num_key_value_heads_by_layer=[2, 3],
                                intermediate_size_by_layer=[20, 7]),
    "factored": llama.LlamaConfig(**SMALL, ranks_by_layer={"k_proj": [2, 3], "up_proj": [4, 0], "down_proj": [3, 3]}),
    "gpt2": gpt2.GPT2Config(vocab_size=19, n_positions=16, n_embd=12, n_layer=2, n_head=3, bos_token_id=1),
}
CHARACTERS = Tokenizer.characters("abcdefghijklmnopqrs")                          # 19 of them, a token each
SAMPLED = GenerationConfig(max_new_tokens=40, do_sample=True, temperature=0.8, top_k=12, top_p=0.95, min_p=0.01,
                           repetition_penalty=1.1, seed=3)
each_case = pytest.mark.parametrize("case", CASES)
ids = st.integers(0, 18)


@functools.cache
def model(case):
    """(parameters, config) in float64, wide enough that the scores of two tokens differ."""
    tree, rng = CASES[case].model.init(CASES[case], 0, "float64"), np.random.default_rng(1)
    return params.rebuild(tree, (rng.standard_normal(a.shape) / a.ndim for _, a in params.leaves(tree))), CASES[case]


def same(a, b):
    """Within 1e-12 of the largest: two layers of sums of at most 20 terms, each rounded by 1e-16, grow 100 times."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


# The cache

@each_case
@given(data=st.data())
def test_a_text_cut_anywhere_has_the_scores_of_the_whole(case, data):
    p, c = model(case)
    text = np.array(data.draw(st.lists(st.tuples(ids, ids), min_size=1, max_size=12))).T                # [B=2 T]
    cuts = sorted(data.draw(st.sets(st.integers(1, text.shape[1]))))
    caches = new_cache(c, 2, np.empty(0), room=data.draw(st.integers(1, 16)))
    pieces = [c.model.logits(piece, p, c, caches=caches)[0] for piece in np.split(text, cuts, axis=1) if piece.size]
    same(np.concatenate(pieces, axis=1), c.model.logits(text, p, c)[0])
    assert all(cache.length == text.shape[1] for cache in caches)


def test_a_cache_grows_keeps_what_it_holds_and_drops_rows():
    k = np.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    cache = Cache(2, 3, 4, np.empty(0), room=1)
    for i in range(5):
        held = cache.extend(k[:, :, i:i + 1], -k[:, :, i:i + 1])
        np.testing.assert_array_equal(held, [k[:, :, :i + 1], -k[:, :, :i + 1]])
    cache.keep([1])
    np.testing.assert_array_equal(cache.extend(k[1:, :, :0], k[1:, :, :0]), [k[1:], -k[1:]])


@each_case
@given(prompts=st.lists(st.lists(ids, min_size=1, max_size=12), min_size=1, max_size=4))
def test_padding_on_the_left_changes_no_score(case, prompts):
    p, c = model(case)
    batch, mask = session.padded(prompts)
    together = c.model.next_scores(batch, p, c, mask=mask,
                                     caches=new_cache(c, len(prompts), np.empty(0)))
    same(together, np.stack([c.model.logits(np.array([prompt]), p, c)[0][0, -1] for prompt in prompts]))


@pytest.mark.parametrize("config", [replace(CASES["gqa"], num_hidden_layers=4), replace(CASES["gpt2"], n_layer=4)],
                         ids=["llama", "gpt2"])
def test_no_layer_keeps_its_input_while_the_next_ones_run(config, monkeypatch):
    block, inputs, alive = config.model.block, [], []

    def watched(x, *arguments, **options):
        alive.append(sum(reference() is not None for reference in inputs))
        inputs.append(weakref.ref(x))
        return block(x, *arguments, **options)

    monkeypatch.setattr(config.model, "block", watched)
    tree = config.model.init(config)
    caches = new_cache(config, 1, np.empty(0, np.float32))
    config.model.next_scores(np.array([[1, 2, 3]]), tree, config, caches=caches)
    assert alive == [0, 1, 1, 1]                                        # the embeddings, by their function


# The loop

def naive(p, c, prompt, choose, count):
    """The loop without cache or batch: the whole window is encoded for every token."""
    known, start = list(prompt), 0
    for _ in range(count):
        if len(known) - start > c.max_position_embeddings:
            start = len(known) - c.max_position_embeddings // 2
        known.append(choose(c.model.logits(np.array([known[start:]]), p, c)[0][0, -1], known))
    return known[len(prompt):]


@each_case
def test_greedy_is_the_chain_of_the_likeliest(case):
    """40 tokens: the window of 16 slides three times and more."""
    p, c = model(case)
    result, = generate(p, c, [[3, 1, 4]], settings=GenerationConfig(max_new_tokens=40))
    assert result.ids == naive(p, c, [3, 1, 4], lambda z, known: int(z.argmax()), 40)
    assert (result.finish_reason, result.text) == ("length", None)


@each_case
def test_a_text_does_not_depend_on_the_rest_of_the_batch(case):
    """Rows slide at different steps, and end at different steps on an end token."""
    p, c = model(case)
    c = replace(c, eos_token_id=[5, 7, 10])
    prompts = [[3, 1, 4, 1], [2], [9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6], [0, 0, 0], []]
    together = generate(p, c, prompts, CHARACTERS, SAMPLED)
    assert together == [generate(p, c, [prompt], CHARACTERS, SAMPLED)[0] for prompt in prompts]
    assert len({len(result.ids) for result in together}) > 1, "no row ends before another: the test tests nothing"


def test_sampling_is_the_naive_loop_over_the_distribution():
    p, c = model("gqa")
    rng = generator(SAMPLED.seed, "generate", 0, 3, 1, 4)

    def choose(z, known):
        chances = choice.distribution(choice.repetition_penalty(z, known, SAMPLED.repetition_penalty), SAMPLED)
        return int((rng.random() >= np.cumsum(chances)).sum())

    assert generate(p, c, [[3, 1, 4]], settings=SAMPLED)[0].ids == naive(p, c, [3, 1, 4], choose, 40)


def test_each_sequence_is_another_and_the_same_however_many_are_asked_for():
    p, c = model("gqa")

    def texts(prompts, n, seed=3):
        settings = replace(SAMPLED, num_return_sequences=n, seed=seed)
        return [result.text for result in generate(p, c, prompts, CHARACTERS, settings)]

    five = texts([[3, 1]], 5)
    assert len(set(five)) == 5
    assert five[:2] == texts([[3, 1]], 2)
    assert five == texts([[3, 1]] * 5, 1), "the same prompt again is one more sequence of it"
    assert texts([[3, 1], [4]], 2) == five[:2] + texts([[4]], 2), "the results of a prompt lie side by side"
    assert not set(five) & set(texts([[3, 1]], 5, seed=4))


def test_an_end_token_ends_and_is_not_shown():
    p, c = model("gqa")
    free = generate(p, c, [[3]], CHARACTERS, GenerationConfig(max_new_tokens=9))[0]
    end = free.ids[4]
    first = free.ids.index(end)
    for eos in (end, [end], [end, 18]):
        ended = generate(p, replace(c, eos_token_id=eos), [[3]], CHARACTERS, GenerationConfig(max_new_tokens=9))[0]
        assert (ended.ids, ended.finish_reason) == (free.ids[:first + 1], "eos")


def test_the_tokenizers_own_end_token_ends_unless_the_model_names_another():
    p, c = model("gqa")
    ends_with_0 = Tokenizer.byte_pairs(["ab"], 257)                              # <|endoftext|>, then the bytes
    ended = generate(p, c, [[3]], ends_with_0, SAMPLED)[0]
    assert (ended.ids[-1], ended.finish_reason) == (0, "eos")
    assert ended.text == ends_with_0.decode(ended.ids[:-1])
    on = generate(p, replace(c, eos_token_id=18), [[3]], ends_with_0, SAMPLED)[0]
    assert on.ids[:len(ended.ids)] == ended.ids
    assert len(on.ids) > len(ended.ids)


def test_no_new_tokens():
    p, c = model("gqa")
    none = GenerationConfig(max_new_tokens=0)
    assert generate(p, c, [[3], [4, 5]], CHARACTERS, none) == [Result([], "", "length")] * 2
    assert generate(p, c, []) == []


def test_an_empty_prompt_begins_with_bos():
    p, c = model("gqa")
    assert generate(p, c, [[]]) == generate(p, c, [[1]])
    with pytest.raises(UserError, match=r"empty.*give a prompt"):
        generate(p, replace(c, bos_token_id=None), [[]], CHARACTERS)


def test_of_a_prompt_longer_than_the_window_the_last_tokens_are_read():
    p, c = model("gqa")
    prompt = [int(i) for i in np.random.default_rng(0).integers(0, 19, 40)]
    settings = GenerationConfig(max_new_tokens=12)
    long, longer = generate(p, c, [prompt, [3, *prompt]], settings=settings)
    assert long.ids == longer.ids == generate(p, c, [prompt[-16:]], settings=settings)[0].ids
    assert len(generate(p, c, [[2] * 16])[0].ids) == 100


def test_an_id_that_no_token_has_is_never_chosen():
    """Embeddings are padded to round sizes; the rows beyond the vocabulary are as good as any to a young model."""
    p, c = model("gqa")
    p = p | {"lm_head": {"weight": p["lm_head"]["weight"] * np.r_[np.ones(10), 1000 * np.ones(9)][:, None]}}
    few = Tokenizer.characters("abcdefghij")
    for settings in (GenerationConfig(), GenerationConfig(do_sample=True, temperature=5.0)):
        assert max(generate(p, c, [[3]], few, settings)[0].ids) < 10
    assert max(generate(p, c, [[3]])[0].ids) >= 10


def test_scores_that_are_not_numbers_are_a_user_error():
    p, c = model("gqa")
    broken = p | {"lm_head": {"weight": p["lm_head"]["weight"] * np.nan}}
    with pytest.raises(UserError, match="diverged"):
        generate(broken, c, [[3]])


def test_a_strong_penalty_makes_greedy_say_every_token_once():
    """Of positive scores, by a bias: then a divided score falls below all others."""
    p, c = model("gqa")
    p = p | {"lm_head": {**p["lm_head"], "bias": np.full(19, 100.0)}}
    settings = GenerationConfig(max_new_tokens=16, repetition_penalty=1e6)
    assert len({3, 4, *generate(p, c, [[3, 4]], settings=settings)[0].ids}) == 18


@pytest.mark.parametrize("K", [1, 2])
def test_a_penalty_leaves_a_start_token_alone_that_the_tokenizer_lacks(K):
    """It has no score, because it is never chosen."""
    config = replace(chains.model().config, vocab_size=15)
    settings = GenerationConfig(max_new_tokens=4, num_beams=K, repetition_penalty=1.5)
    result, = generate(config.model.init(config), config, [[14]], chains.tokenizer(), settings)
    assert len(result.ids) == 4
    assert max(result.ids) < 13


def test_no_temperature_is_greedy():
    p, c = model("gqa")
    cold = GenerationConfig(do_sample=True, temperature=0.0, top_k=3)
    assert generate(p, c, [[3]], settings=cold)[0].ids == generate(p, c, [[3]])[0].ids


# The text

LETTERS = "abc€"                                    # € is three bytes
TOKENIZERS = {"characters": Tokenizer.characters(LETTERS), "bytes": Tokenizer.bytes(),
              "words": Tokenizer.byte_pairs(["ab", "abc", "bca€", "cab", "aabbcc"] * 4, 300, special=())}
pieces = st.text(LETTERS, min_size=1, max_size=4)


def cut(text, stops):
    """The text before the stop string that is complete first; of two, the longer."""
    for n in range(len(text) + 1):
        ends = [len(stop) for stop in stops if text[:n].endswith(stop)]
        if ends:
            return text[:n - max(ends)]
    return text


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(LETTERS, max_size=20), stops=st.lists(pieces, max_size=3), end=st.integers(0, 60))
@example(text="abc", stops=["abc", "b"], end=9)             # one token holds both: b is complete first
def test_a_text_ends_before_a_stop_string_and_shows_nothing_of_it(kind, text, stops, end):
    """Whether tokens are characters, parts of them or several; the last token may be a part of a character."""
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text).tolist()[:end]
    written, shown = Text(tokenizer, [], stops), ""
    for i, token in enumerate(tokens):
        shown += written.push(token, last=i + 1 == len(tokens))
        if written.stopped:
            break
        waiting = tokenizer.decode(tokens[:i + 1]).rstrip("\ufffd")[len(shown):]
        assert not waiting or any(stop.startswith(waiting) for stop in stops), "held back for nothing"
    whole = tokenizer.decode(tokens)
    assert shown == written.text == cut(whole, stops)
    assert written.stopped == any(stop in whole for stop in stops)


def test_a_stop_string_across_tokens_ends_one_row_and_disturbs_no_other():
    p, c = model("gqa")
    settings = replace(SAMPLED, repetition_penalty=1.0)
    one, other = generate(p, c, [[3, 1, 4], [5]], CHARACTERS, settings)
    stop = one.text[20:25]                          # five tokens
    assert stop not in other.text
    stopped, undisturbed = generate(p, c, [[3, 1, 4], [5]], CHARACTERS, replace(settings, stop_strings=("€", stop)))
    at = one.text.index(stop)
    assert stopped == Result(one.ids[:at + 5], one.text[:at], "stop")
    assert undisturbed == other
    with pytest.raises(UserError, match="need a tokenizer"):
        generate(p, c, [[3]], settings=replace(settings, stop_strings=(stop,)))


@pytest.mark.parametrize(("stop", "text"), [
    ("<|im_end|>", "bc"), ("c<|im_end|>", "b"), ("<|im_end|>d", "bc"), ("bc<|im_end|>de", ""), ("cd", "b"),
    ("<|im_end|><|im_end|>", "bcdef"), ("<|im_end", "bcdef"), ("im_end", "bcdef"), ("<", "bcdef"), ("fgh", "bcdef"),
    ("<|endoftext|>", "bcdef"), ("e", "bcd"), ("---", "bcdef")])
def test_a_stop_string_may_name_special_tokens(stop, text):
    """A stop string that names none is looked for in the text, which has none."""
    model = chains.model()
    prompt = model.tokenizer.encode("a").tolist()
    for settings in (GenerationConfig(stop_strings=(stop,)), GenerationConfig(stop_strings=("xyz", stop))):
        result, = generate(model.params, model.config, [prompt], model.tokenizer, settings)
        assert result.text == text
        assert "".join(stream(model.params, model.config, prompt, model.tokenizer, settings)) == text


def test_a_stop_string_is_found_across_a_border_of_tokens_and_only_once_it_is_complete():
    tokens = chains.tokenizer()
    text = Text(tokens, [], ["---", "c<|im_end|>d"])
    ids = [tokens.rust.token_to_id(token) for token in ("a", "-", "-", "c", "<|im_end|>", "e", "-", "-", "-")]
    assert [text.push(i, last=False) for i in ids] == ["a", "", "", "--", "", "ce", "", "", ""]
    assert (text.text, text.stopped) == ("a--ce", True)


@pytest.mark.parametrize("stops", [(), ("i",), ("ab", "p")])
def test_the_pieces_joined_are_the_text(stops):
    """And they come one by one: the first is there before the model has run twice."""
    p, c = model("gqa")
    settings, prompts = replace(SAMPLED, stop_strings=stops, num_return_sequences=2), [[3, 1], [4]]
    calls = []
    results = generate(p, c, prompts, CHARACTERS, settings, lambda *call: calls.append(call))
    for i, result in enumerate(results):
        assert [token for row, token, _ in calls if row == i] == result.ids
        assert "".join(piece for row, _, piece in calls if row == i) == result.text
    shown = list(stream(p, c, [3, 1], CHARACTERS, settings))
    assert "".join(shown) == results[0].text
    assert all(shown)


def test_a_stream_computes_no_further_than_it_is_read(monkeypatch):
    p, c = model("gqa")
    runs = []
    monkeypatch.setattr(llama, "next_scores",
                        lambda ids, *a, f=llama.next_scores, **k: runs.append(ids.shape) or f(ids, *a, **k))
    with backend.use("numpy"):                              # the plan that C runs does not call it
        text = stream(p, c, [3, 1], CHARACTERS, SAMPLED)
        next(text)
        next(text)
    assert runs == [(1, 2), (1, 1)], "the prompt at once, and then one token"
