"""generation_config.json compared with what it means, on models whose texts are known."""
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

import pyllama
from pyllama.cli import main
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, Rules, config_file, generate
from tests import chains
from tests.chains import TOKENS
from tests.test_search import END, found, random_table

IM_END, A, C, D = (TOKENS.index(token) for token in ("<|im_end|>", "a", "c", "d"))


@pytest.mark.parametrize(("values", "text"), [
    ({}, "abcdef"),
    ({"eos_token_id": IM_END}, "abc"),
    ({"eos_token_id": [0, IM_END]}, "abc"),
    ({"eos_token_id": None, "do_sample": False, "temperature": 0.6, "top_p": 0.9, "use_cache": True}, "abcdef"),
    ({"max_new_tokens": 2}, "abc"),
    ({"max_length": 2}, "ab"),
    ({"max_length": 2, "max_new_tokens": 4}, "abcd"),
    ({"eos_token_id": [0, IM_END], "min_new_tokens": 3}, "abcabc"),       # b c, then the lowest id that ends nothing
    ({"eos_token_id": [0, IM_END], "min_length": 4, "max_new_tokens": 4}, "abcab"),
    ({"suppress_tokens": [C]}, "ab"),                                     # the next best ends
    ({"begin_suppress_tokens": [TOKENS.index("b")]}, "a"),
    ({"bad_words_ids": [[TOKENS.index("b"), C]]}, "ab"),
    ({"bad_words_ids": [[A, C], [0]]}, "abcdef"),                        # the second is an end token, which may come
    ({"no_repeat_ngram_size": 1, "eos_token_id": 12, "max_new_tokens": 12}, "abcdefghi-€"),
    ({"forced_eos_token_id": 0, "max_new_tokens": 2}, "ab"),
    ({"forced_bos_token_id": D, "max_new_tokens": 3}, "adef"),
    ({"stop_strings": "d"}, "abc"),
    ({"stop_strings": ["x", "de"]}, "abc"),
    ({"repetition_penalty": 1e9, "eos_token_id": 12, "max_new_tokens": 3}, "abc"),
])
def test_the_file_decides(values, text):
    assert chains.model(**values).generate("a") == text


def test_an_option_wins_over_the_file():
    model = chains.model(eos_token_id=[0, IM_END], max_new_tokens=1, min_new_tokens=5)
    assert model.generate("a", max_new_tokens=2, min_new_tokens=0) == "abc"
    assert model.generate("a", max_new_tokens=4) == "abcab"
    assert chains.model(max_length=2).generate("abc", max_new_tokens=2) == "abcd"
    with pytest.raises(UserError, match="there is no option 'num_groups' here"):
        model.generate("a", num_groups=3)
    with pytest.raises(UserError, match="num_beams above 1 searches and do_sample draws; set one of them, not both"):
        model.generate("a", num_beams=3, do_sample=True)
    with pytest.raises(UserError, match=r"the prompt has 3 tokens, .* a max_length of 3; set max_new_tokens"):
        chains.model(max_length=3).generate("abc")
    with pytest.raises(UserError, match="exclude every token; relax them"):
        chains.model(suppress_tokens=[*range(len(TOKENS))]).generate("a")


def test_the_file_decides_whether_to_sample():
    plan = config_file.understood({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, chains.model().config)
    base = {"do_sample": True, "temperature": 0.8, "top_k": 200}

    def settings(chosen, values=plan.options, base=base):
        return replace(plan, options=values).settings(chosen, base)[0]

    sampled = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=50)       # as transformers
    assert settings({}) == settings({}, base=None) == sampled
    assert settings({"top_k": 3}) == replace(sampled, top_k=3)
    assert settings({"do_sample": False}) == settings({}, {"do_sample": False, "top_k": 9}) == GenerationConfig()
    assert settings({}, {}) == GenerationConfig(**base)
    assert settings({}, {}, None) == GenerationConfig()
    assert settings({}, {"temperature": 0.6}, None) == GenerationConfig()
    assert settings({}, {"temperature": 0.6}) == GenerationConfig(do_sample=True, temperature=0.6)
    assert settings({"temperature": 0.0}, {}).greedy
    assert settings({"num_beams": 2}) == GenerationConfig(num_beams=2)
    assert settings({}, {"num_beams": 2, "num_return_sequences": 2}) == \
        GenerationConfig(num_beams=2, num_return_sequences=2)
    assert settings({"do_sample": True}, {"num_beams": 2, "temperature": 0.6}, None) == \
        GenerationConfig(do_sample=True, temperature=0.6)


def test_the_file_is_read_written_and_follows_the_model(tmp_path):
    chains.model(eos_token_id=[0, IM_END]).save(tmp_path / "a")
    model = pyllama.load(tmp_path / "a")
    assert model.generate("a") == "abc"
    assert json.loads((tmp_path / "a/generation_config.json").read_text()) == {"eos_token_id": [0, IM_END]}
    chains.model().save(tmp_path / "a")
    assert pyllama.load(tmp_path / "a").generate("a") == "abcdef"
    config = tmp_path / "a/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"no_repeat_ngram_size": 3, "max_length": 3}))
    assert pyllama.load(tmp_path / "a").generate("a") == "abc"              # of a folder from before the file was


def test_the_command_samples_unless_told_otherwise(tmp_path, capsys):
    """All scores are equal but one, of which every second token is chosen at the temperature 1."""
    model = chains.model({})
    model.params["lm_head"]["weight"][:] = 0
    model.params["lm_head"]["weight"][A] = np.log(12) / np.sqrt(model.config.hidden_size)
    model.save(tmp_path / "none")
    model.generation_config = {"do_sample": False}
    model.save(tmp_path / "greedy")

    def text(folder, *flags):
        argv = ["generate", "--model", str(tmp_path / folder), "--prompt", "b", "--max_new_tokens", "12", *flags]
        assert main(argv) == 0
        return capsys.readouterr().out

    sampled, greedy = text("none"), "b" + 12 * "a" + "\n"
    assert sampled != greedy
    assert sampled == text("none", "--temperature", "0.8", "--top_k", "200") != text("none", "--seed", "1")
    for flags in (["--temperature", "0"], ["--do_sample", "False"], ["--no_do_sample"], ["--do_sample=False"],
                  ["--top_k", "1"]):
        assert text("none", *flags) == greedy
    assert text("greedy") == greedy
    for flags in (["--temperature", "0.8"], ["--top_k", "9"], ["--top_p", "0.9"], ["--do_sample"]):
        assert text("greedy", *flags) != greedy
    assert text("greedy", "--num_samples", "2").count("b") >= 2
    assert text("none", "--temperature", "1e-310") == greedy


def test_what_is_not_supported_is_named(tmp_path, capsys):
    model = chains.model(typical_p=0.2, num_beams=4, do_sample=True, epsilon_cutoff=0.0, guidance_scale=None,
                         unheard_of=3)
    note = ("generation_config.json: do_sample with num_beams, typical_p are not supported; transformers' texts may "
            "differ")
    with pytest.warns(UserWarning, match=note):
        model.generate("a")
    model.save(tmp_path)
    assert main(["generate", "--model", str(tmp_path), "--prompt", "a", "--temperature", "0"]) == 0
    assert capsys.readouterr() == ("abcdef\n", f"{note}\n")


@pytest.mark.parametrize(("name", "value", "message"), [
    ("eos_token_id", "0", "eos_token_id = '0', but it must be an id or a list of ids; fix it or remove it"),
    ("eos_token_id", 999, "eos_token_id = 999, but the model's vocabulary has 13 tokens; write an id from 0 to 12"),
    ("eos_token_id", [0, -1], "= -1, but the model's vocabulary"),
    ("eos_token_id", True, "eos_token_id = true"),
    ("temperature", "hot", "temperature = 'hot', but it must be a number"),
    ("temperature", [1], "temperature"),
    ("temperature", float("nan"), "temperature is nan"),
    ("max_new_tokens", 1.5, "max_new_tokens = 1.5, but it must be a whole number"),
    ("max_new_tokens", -1, "max_new_tokens = -1"),
    ("max_length", float("inf"), "max_length = inf"),
    ("max_length", 10 ** 400, "max_length = 10"),
    ("temperature", 10 ** 400, "temperature = 10"),
    ("eos_token_id", 10 ** 400, "eos_token_id = 10"),
    ("do_sample", "yes", "do_sample = 'yes', but it must be true or false"),
    ("bad_words_ids", [[]], "bad_words_ids"),
    ("bad_words_ids", [3], "bad_words_ids"),
    ("bad_words_ids", [["x"]], "= 'x'"),
    ("stop_strings", [3], "stop_strings"),
    ("stop_strings", "", "a sequence of non-empty strings"),
    ("forced_bos_token_id", [3], "forced_bos_token_id = \\[3\\], but it must be an id"),
])
def test_a_value_of_the_wrong_kind_is_refused_by_name(name, value, message):
    with pytest.raises(UserError, match=message):
        chains.model(**{"do_sample": True, name: value}).generate("a")


@pytest.mark.parametrize(("options", "message"), [
    ({"max_new_tokens": "5"}, "max_new_tokens is '5'; it must be a whole number from 0 on"),
    ({"early_stopping": "sometimes"}, 'early_stopping is .*; it must be true, false or "never"'),
    ({"bad_words_ids": [3]}, "bad_words_ids is \\[3\\]; it must be a list of lists of ids"),
    ({"eos_token_id": [99]}, "eos_token_id is 99, but the model's vocabulary has 13 tokens; give an id from 0 to 12"),
    ({"min_new_tokens": 3, "max_new_tokens": 2}, "min_new_tokens is 3, but max_new_tokens is 2; raise max_new_tokens"),
    ({"min_new_tokens": 101}, "min_new_tokens is 101, but max_new_tokens is 100"),
    ({"output_scores": True}, "returns texts without scores; use pyllama.generation.generate, or remove output_scores"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3, which needs as many num_beams"),
])
def test_an_option_of_the_wrong_kind_is_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        chains.model().generate("a", **options)


def test_the_least_length_of_a_file_counts_with_the_greatest_of_the_file():
    model = chains.model(max_length=130, min_new_tokens=120)
    _, rules = config_file.understood(model.generation_config, model.config).settings({})
    assert (rules.max_length, rules.min_new_tokens) == (130, 120)


def test_the_least_length_of_a_file_gives_way_to_a_person_s_greatest():
    assert chains.model(min_new_tokens=9).generate("-", max_new_tokens=4) == "-----"
    model = chains.model()
    for rules in Rules(min_new_tokens=5), Rules(min_new_tokens=5, min_length=2):
        with pytest.raises(UserError, match="min_new_tokens is 5, but max_new_tokens is 4"):
            generate(model.params, model.config, [[3]], settings=GenerationConfig(max_new_tokens=4), rules=rules)
    rules = Rules(min_new_tokens=5, max_length=9)           # which counts instead of max_new_tokens
    minus = chains.TOKENS.index("-")
    result, = generate(model.params, model.config, [[minus]], settings=GenerationConfig(max_new_tokens=4), rules=rules)
    assert result.ids == [minus] * 8


@pytest.mark.parametrize("content", ["[]", "3", "{", ""])
def test_a_file_that_is_no_object_is_refused(content, tmp_path):
    chains.model().save(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json is (not an object|damaged)"):
        pyllama.load(tmp_path)


def test_an_id_that_the_tokenizer_lacks_is_not_forced():
    """A model may have more embeddings than its tokenizer has tokens."""
    model = chains.model()
    config = replace(model.config, vocab_size=15)
    with pytest.raises(UserError, match="exclude every token"):
        generate(config.model.init(config), config, [[3]], model.tokenizer, rules=Rules(forced_bos_token_id=14))


def test_the_rules_hold_for_beams():
    def targets(seed, K, **rules):
        hypotheses, = found(random_table(seed), 1, Rules(**rules), max_new_tokens=5, num_beams=K)
        return [h.ids for h in hypotheses]

    for seed in range(20):
        for K in (1, 3):
            assert all(END not in ids[:3] for ids in targets(seed, K, min_new_tokens=3))
            assert all(END not in ids[:2] for ids in targets(seed, K, min_length=3))       # with the start token
            assert all(ids[0] == 2 for ids in targets(seed, K, forced_bos_token_id=2))
            assert all(ids[-1] == END for ids in targets(seed, K, forced_eos_token_id=END))
            assert all(1 not in ids for ids in targets(seed, K, suppress_tokens=[1]))
            for ids in targets(seed, K, no_repeat_ngram_size=2):
                assert len({*itertools.pairwise(ids)}) == len(ids) - 1
    with pytest.raises(UserError, match="exclude every token"):
        targets(0, 2, suppress_tokens=[0, 1, 2])


def test_an_encoder_decoder_obeys_its_file():
    model = pyllama.create("transformer", "python-docs", tokenizer="bpe", vocab_size=300, hidden_size=8)
    model.generation_config = {"max_length": 4, "forced_bos_token_id": 40, "num_beams": 2, "early_stopping": "never",
                               "decoder_start_token_id": 2, "min_length": 4}
    plan = config_file.understood(model.generation_config, model.config)
    assert plan.config.decoder_start_token_id == 2
    text = model.generate("a")
    assert text.startswith(model.tokenizer.decode([40]))
    assert 1 <= len(model.tokenizer.encode(text)) <= 3
    np.testing.assert_equal(plan.options, {"num_beams": 2, "early_stopping": "never"})
