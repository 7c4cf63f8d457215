"""Measures of answers: against other programs, and by hand."""
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllama.tasks import classify, instruct, qa, seq2seq
from pyllama.tasks.rows import Row
from pyllama.text import scripts
from tests.extras import needs_rouge, needs_sacrebleu, needs_scikit_learn

labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)


@needs_scikit_learn
@given(labels)
def test_classification_is_measured_as_scikit_learn_does(pairs):
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
    pairs = [*pairs, ("b", "b"), ("c", "c")]
    truth, answers = map(list, zip(*pairs, strict=True))
    got = classify.metrics(answers, [Row("", {"label": label}) for label in truth])
    names = got["labels"]
    precision, recall, f1, _ = precision_recall_fscore_support(truth, answers, average="macro", zero_division=0)
    np.testing.assert_allclose([got["precision_macro"], got["recall_macro"], got["f1_macro"]], [precision, recall, f1])
    assert got["accuracy"] == got["f1_micro"] == pytest.approx(accuracy_score(truth, answers))
    assert got["confusion"] == confusion_matrix(truth, answers, labels=names).tolist()


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edits_are_the_shortest_way(a, b):
    """Against the definition, by recursion."""
    def shortest(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(shortest(a[1:], b) + 1, shortest(a, b[1:]) + 1, shortest(a[1:], b[1:]) + (a[0] != b[0]))

    assert seq2seq.edits(a, b) == shortest(a, b)


def test_a_correction_is_measured_by_its_edits():
    """Two edits are due; one is made as it should be, one elsewhere: precision and recall are a half, so is F."""
    got = seq2seq.correction(["he go to school yesterday"], ["he went to a school yesterday"],
                             ["he went to school yesterday ."])
    assert (got["edit_precision"], got["edit_recall"], got["edit_f0.5"]) == (0.5, 0.5, 0.5)
    same = seq2seq.correction(["fine"], ["fine"], ["fine"])
    assert (same["edit_f0.5"], same["exact_match"], same["edit_error_rate"]) == (1.0, 1.0, 0.0)
    assert seq2seq.correction(["a b"], ["a b"], ["a c"])["edit_f0.5"] == 0.0
    assert seq2seq.correction(["a b c d"], ["x b c d"], ["x b y d"])["edit_f0.5"] == pytest.approx(1.25 * 0.5 / 0.75)


def test_a_full_stop_is_an_edit_of_its_own():
    got = seq2seq.correction(["he go home"], ["He goes home"], ["He goes home."])
    assert (got["edit_precision"], got["edit_recall"]) == (1.0, 0.5)
    assert got["edit_f0.5"] == pytest.approx(1.25 * 0.5 / 0.75)
    assert got["gleu"] == pytest.approx(np.exp(1 - 4 / 3))              # all n-grams are right; 3 of 4 words
    assert seq2seq.changes("I dont, know", "I don't know") == {(1, 3, "don't")}


LEFT, MENDED, RIGHT = "a b c d e f x", "a b c d e f y", "p q r s t u v"


@pytest.mark.parametrize(("texts", "fourth_power"), [               # (source, answer, reference); the product of the 4
    ([(LEFT, MENDED, MENDED)], 1),
    ([(LEFT, LEFT, MENDED)], (6 - 1) / 7 * (5 - 1) / 6 * (4 - 1) / 5 * (3 - 1) / 4),        # what is left counts twice
    ([(LEFT, "a b c d e f z", MENDED)], 6 / 7 * 5 / 6 * 4 / 5 * 3 / 4),
    ([(LEFT, LEFT, MENDED), (RIGHT, RIGHT, RIGHT)], (5 + 7) / 14 * (4 + 6) / 12 * (3 + 5) / 10 * (2 + 4) / 8),
    ([("p q r s", "p q r s", "a b c d"), ("a b c d", "a b c d", "a b c d")], (1 / 2) ** 4),     # none is below 0
    ([("x x " + RIGHT, "x x " + RIGHT, "x " + RIGHT)], 8 / 9 * (7 - 1) / 8 * (6 - 1) / 7 * (5 - 1) / 6),
    ([(MENDED, "a b c d", MENDED)], math.exp(4 * (1 - 7 / 4))),     # brevity alone
    ([("a b c d", MENDED, "a b c d")], 4 / 7 * 3 / 6 * 2 / 5 * 1 / 4),
    ([("a b c", "a b c", "a b d")], 0),                             # no pair is right but for one that is left
    ([("a b", "a c", "a c")], 1),                                   # too short for three words
    ([("a b", "", "a c")], 0),
])
def test_gleu_is_as_derived_by_hand(texts, fourth_power):
    sources, answers, truth = zip(*texts, strict=True)
    assert seq2seq.gleu(sources, answers, truth) == pytest.approx(fourth_power ** 0.25)
    assert seq2seq.correction(sources, answers, truth)["gleu"] == seq2seq.gleu(sources, answers, truth)


@needs_sacrebleu
def test_bleu_is_sacrebleus_and_cuts_chinese():
    from sacrebleu import corpus_bleu
    answers, truth = ["我不想听你的理论。"], ["我不想听他的理论。"]
    got = seq2seq.translation(answers, truth)
    assert got["bleu"] == corpus_bleu(answers, [truth], tokenize="zh").score
    assert "tok:zh" in got["bleu_signature"]
    assert "tok:13a" in seq2seq.translation(["a b"], ["a c"])["bleu_signature"]


GERMAN = ["Herr 李 wohnt heute in Berlin.", "Das Wetter ist gut."]
BLEU_TOKENIZERS = [
    (["我不想听他的理论。"], "zh"), (["我用 iPhone 听他的理论。", "今天天气很好"], "zh"), (GERMAN, "13a"), ([], "13a"),
    (["..."], "13a"), (["Я иду на работу"], "13a"), (["나는 학교에 간다"], "13a"), (["أنا ذاهب إلى العمل"], "13a"),
    (["私は学校に行きます。", "東京タワー"], "char"), (["カタカナ"], "char"), (["ฉันไปโรงเรียน"], "char"),
    (["ខ្ញុំទៅសាលា"], "char")]


@pytest.mark.parametrize(("truth", "tokenizer"), BLEU_TOKENIZERS)
def test_the_tokenizer_of_bleu_is_that_of_most_letters(truth, tokenizer):
    assert seq2seq.bleu_tokenizer(truth) == tokenizer


@needs_sacrebleu
@pytest.mark.parametrize(("truth", "tokenizer"), [case for case in BLEU_TOKENIZERS if case[0]])
def test_bleu_says_its_tokenizer_and_equal_texts_have_100(truth, tokenizer):
    from sacrebleu import corpus_bleu
    got = seq2seq.translation(truth[::-1], truth)
    assert f"tok:{tokenizer}" in got["bleu_signature"]
    assert got["bleu"] == corpus_bleu(truth[::-1], [truth], tokenize=tokenizer).score
    long = [" ".join(truth * 4)]                            # with 4 words, which BLEU needs
    assert seq2seq.translation(long, long)["bleu"] == pytest.approx(100)


@needs_rouge
def test_rouge_is_of_stems():
    """ROUGE-1: both of 2 words; ROUGE-2: the one pair; "cats" and "cat" are one stem."""
    got = seq2seq.summary(["cats sleep"], ["the cat sleeps"])
    assert (got["rouge1"], got["rouge2"], got["rougeL"]) == pytest.approx((0.8, 2 / 3, 0.8))


english = st.text(st.characters(max_codepoint=127), max_size=60) | st.lists(st.sampled_from(
    ["The", "cat's", "running,", "runs", "RAN", "2,024", "times:", "co-operate!", "flies_fly", "(generously)"]),
    max_size=12).map(" ".join)


@needs_rouge
@given(st.lists(st.tuples(english, english), min_size=1, max_size=4))
@example([("the cats are running generously", "The cat runs, generous.")])
def test_rouge_of_english_is_that_of_rouge_score(pairs):
    from rouge_score.rouge_scorer import RougeScorer
    answers, truth = map(list, zip(*pairs, strict=True))
    kinds = ["rouge1", "rouge2", "rougeL"]
    for stemmed, got in ((True, seq2seq.summary(answers, truth)),
                         (False, instruct.metrics(answers, [Row("", {"output": text}) for text in truth]))):
        scorer = RougeScorer(kinds, use_stemmer=stemmed)
        scores = [scorer.score(reference, answer) for answer, reference in pairs]
        for kind in kinds if stemmed else ["rougeL"]:
            assert got[kind] == np.mean([score[kind].fmeasure for score in scores])
        assert f"use_stemmer={stemmed}" in got["variant"]
        assert "rougeL (not rougeLsum)" in got["variant"]


GREETINGS = ["я иду на работу", "今天天气很好", "Καλημέρα κόσμε", "صباح الخير يا عالم", "ฉันไปโรงเรียน", "नमस्ते दुनिया आज",
             "私は学校に行く", "나는 학교에 간다", "שלום עולם טוב", "ខ្ញុំទៅសាលា", "Zürich über Öl",
             "გამარჯობა მსოფლიო დღეს"]


@needs_rouge
@pytest.mark.parametrize("text", GREETINGS)
def test_equal_texts_of_any_script_have_rouge_1_and_others_0(text):
    got = seq2seq.summary([text, text], [text.upper(), text + "."])
    assert (got["rouge1"], got["rouge2"], got["rougeL"]) == (1, 1, 1)
    others = [other for other in GREETINGS if other != text]
    got = seq2seq.summary([text] * len(others), others)
    assert got["rouge2"] == 0
    assert instruct.metrics([text], [Row("", {"output": text})])["rougeL"] == 1


@needs_rouge
@pytest.mark.parametrize(("answer", "truth", "rouge1"), [
    ("совсем другое 2024", "я иду на работу 2024", 0.25),       # one word of 3 and of 5
    ("今天好", "今天很好", 6 / 7),                                 # 3 characters of 3 and of 4
    ("買 iPhone 了", "买iPhone了", 2 / 3),
    ("ที่", "ที", 0),                                             # another tone is another syllable
    ("नमस्ते", "नमस्कार", 0),                                        # a word is not cut at its vowel signs
    ("cafe\u0301", "CAFÉ", 1),                                   # one letter, written in two ways
    ("می\u200cخواهم", "می\u200cخواهم", 1),                       # an invisible joiner ends no word
    ("ไป\u200bมา", "ไปมา", 1),
    ("café au lait", "caf au lait", 2 / 3),
])
def test_rouge_counts_words_of_letters_marks_and_numbers(answer, truth, rouge1):
    assert seq2seq.summary([answer], [truth])["rouge1"] == pytest.approx(rouge1)


@given(st.text(max_size=40) | st.text("ab .今の。ไที\u200c", max_size=12))
def test_runs_are_the_text_without_invisible_characters(text):
    found = [*scripts.runs(text)]
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf" or c == scripts.ZERO_WIDTH_SPACE)
    assert "".join(run.text for run in found) == visible
    assert all(unicodedata.category(c)[0] in "LMN" for run in found if run.is_word for c in run.text)
    assert all(len(run.text) == 1 for run in found if not run.is_word)
    if scripts.UNSPACED.search(text) is None:
        found = scripts.tokens(text)
        assert "".join(found) == "".join(text.split())
        assert all(len(token) == 1 or not {"P", "S"} & {unicodedata.category(c)[0] for c in (token[0], token[-1])}
                   for token in found)


@pytest.mark.parametrize(("source", "half", "right"), [
    ("私わ学校え行く", "私は学校え行く", "私は学校へ行く"),
    ("he go to scool", "he goes to scool", "he goes to school")])
def test_a_half_right_correction_has_half_of_the_edits(source, half, right):
    """One of two due edits is made: precision 1, recall a half, so F0.5 is 1.25 · 0.5 / 0.75."""
    got = seq2seq.correction([source], [half], [right])
    assert (got["edit_precision"], got["edit_recall"]) == (1, 0.5)
    assert got["edit_f0.5"] == pytest.approx(1.25 * 0.5 / 0.75)
    assert seq2seq.gleu([source], [right], [right]) == 1


def test_gleu_of_a_half_right_chinese_text_lies_between():
    source, half, right = "我喜欢吃平果，他不喜欢地步。", "我喜欢吃苹果，他不喜欢地步。", "我喜欢吃苹果，他不喜欢跑步。"
    left, better = (seq2seq.gleu([source], [text], [right]) for text in (source, half))
    assert 0 <= left < better < 1


@pytest.mark.parametrize("text", ["日本語", "ภาษาไทย", "ພາສາລາວ", "ភាសាខ្មែរ", "မြန်မာ"])
def test_an_answer_may_end_at_any_letter_of_a_script_without_spaces(text):
    tokenizer = qa.task.tokenizer([text * 50], 600)
    (_, positions), = tokenizer.encode_with_positions([text])
    assert (positions[:, 1] - positions[:, 0]).tolist() == [1] * len(positions)
