"""Text to text: translation, grapheme to phoneme, summarization, correction.  They differ in their metrics."""
import math
from collections import Counter
from difflib import SequenceMatcher
from types import SimpleNamespace

import numpy as np

from pyllama.errors import optional
from pyllama.generation import GenerationConfig, generate
from pyllama.tasks.rows import text_of
from pyllama.tasks.task import Task
from pyllama.text import scripts
from pyllama.text.special import encode
from pyllama.training.examples import Examples

AT_ONCE = 32                                                # sources in a batch of predict()
EXACT = ("exact_match", "edit_error_rate")


def usable_as(source, target):
    """Task.usable for rows with a source text and a target text in these fields."""
    def usable(values):
        return {source: text_of(values, source), target: text_of(values, target)}
    return usable


def examples_of(source, target):
    """Task.examples: ids [S] of the source, labels [T] of the target with its end token but without its start token."""
    def examples(rows, trained):
        sources, targets = (encode(trained.tokenizer, [row.values[name] for row in rows], trained.max_length)
                            for name in (source, target))
        start = trained.tokenizer.bos_id
        return Examples([{"ids": ids, "labels": labels[1:] if len(labels) and labels[0] == start else labels}
                         for ids, labels in zip(sources, targets, strict=True)])
    return examples


def lengths_of(source, target):
    """Task.lengths: the number of tokens, with special ones, of the longer of source and target."""
    def lengths(rows, trained):
        longest = [0] * len(rows)
        for name in (source, target):
            texts = [row.values.get(name, "") for row in rows]
            longest = [max(n, len(ids)) for n, ids in zip(longest, encode(trained.tokenizer, texts), strict=True)]
        return longest
    return lengths


def predict_from(source):
    """Task.predict: the most likely target that is found for each row, as text."""
    def predict(rows, trained, search=None):
        settings = GenerationConfig.of(search)
        ids = encode(trained.tokenizer, [row.values[source] for row in rows], trained.max_length)
        by_length = sorted(range(len(rows)), key=lambda i: len(ids[i]))
        answers = {}
        for first in range(0, len(rows), AT_ONCE):
            batch = by_length[first:first + AT_ONCE]
            results = generate(trained.params, trained.config, [ids[i] for i in batch], trained.tokenizer, settings)
            answers |= {i: result.text for i, result in zip(batch, results, strict=True)}
        return [answers[i] for i in range(len(rows))]
    return predict


# Metrics

def exact_and_edits(answers, truth) -> dict:
    """The share of exact matches; the edit error rate: insertions, deletions and substitutions per target character."""
    return {"exact_match": float(np.mean([a == b for a, b in zip(answers, truth, strict=True)])),
            "edit_error_rate": sum(map(edits, answers, truth)) / max(1, sum(map(len, truth))), "rows": len(truth)}


def edits(a, b) -> int:
    """The Levenshtein distance of two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def translation(answers, truth) -> dict:
    """BLEU and chrF, 0 to 100, as computed by sacrebleu, with its signatures, which name the tokenizer."""
    sacrebleu = optional("sacrebleu", "the task translate")
    bleu, chrf = sacrebleu.BLEU(tokenize=bleu_tokenizer(truth)), sacrebleu.CHRF()
    return {"bleu": bleu.corpus_score(answers, [truth]).score, "bleu_signature": str(bleu.get_signature()),
            "chrf": chrf.corpus_score(answers, [truth]).score, "chrf_signature": str(chrf.get_signature()),
            **exact_and_edits(answers, truth)}


def bleu_tokenizer(truth) -> str:
    """sacrebleu's tokenizer for these references, by the scripts of most of their letters.

    zh      Chinese
    char    Japanese, Thai and other scripts without spaces: of characters, because no word list is needed
    13a     all others
    """
    counts = scripts.letters(truth)
    if 2 * counts[""] >= counts.total():
        return "13a"
    return "zh" if counts["Han"] > 0.9 * (counts.total() - counts[""]) else "char"


def summary(answers, truth) -> dict:
    """The F-measure of ROUGE-1, ROUGE-2 and ROUGE-L with Porter's stemmer: see rouge()."""
    return {**rouge(answers, truth, ("rouge1", "rouge2", "rougeL"), stemmed=True), "rows": len(truth)}


def rouge(answers, truth, kinds, *, stemmed) -> dict:
    """{kind: F-measure} by rouge-score, the mean over the rows, and "variant", its definition in words.

    The words are those of scripts.words(), which are rouge-score's in English; its own tokenizer drops every letter
    that is not ASCII.  stemmed: by Porter's stemmer, for English words.
    """
    scorers = optional("rouge_score.rouge_scorer", "ROUGE")
    english = scorers.tokenizers.DefaultTokenizer(use_stemmer=stemmed)

    def tokenize(text):
        parts = (english.tokenize(word) if word.isascii() else [word] for word in scripts.words(text))
        return [token for part in parts for token in part]

    scorer = scorers.RougeScorer(list(kinds), tokenizer=SimpleNamespace(tokenize=tokenize))
    scores = [scorer.score(b, a) for a, b in zip(answers, truth, strict=True)]
    characters = "; characters of scripts without spaces" if any(map(scripts.UNSPACED.search, truth)) else ""
    return {**{kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds},
            "variant": f"rouge-score's {', '.join(kinds)} (not rougeLsum), use_stemmer={stemmed}, F-measure, mean over "
                       f"rows{characters}"}


def correction(sources, answers, truth) -> dict:
    """Precision, recall and F0.5 of the edits of words (Ng et al., 2014), and GLEU.

    Words are those of scripts.tokens(): each punctuation mark, and each letter in scripts without spaces.

    An edit is correct if the reference has the same one at the same position.  F0.5 weighs precision twice as much as
    recall.
    """
    correct = predicted = true = 0
    for source, answer, reference in zip(sources, answers, truth, strict=True):
        ours, theirs = changes(source, answer), changes(source, reference)
        correct += len(ours & theirs)
        predicted += len(ours)
        true += len(theirs)
    precision = correct / predicted if predicted else 1.0
    recall = correct / true if true else 1.0
    weighted = 0.25 * precision + recall
    f_half = 1.25 * precision * recall / weighted if weighted else 0.0
    return {"edit_precision": precision, "edit_recall": recall, "edit_f0.5": f_half,
            "gleu": gleu(sources, answers, truth), **exact_and_edits(answers, truth)}


def changes(source, text) -> set:
    """The edits that turn source into text: {(first word, past the last, replacement words...)}"""
    a, b = scripts.tokens(source), scripts.tokens(text)
    return {(i, j, *b[k:end]) for kind, i, j, k, end in SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes()
            if kind != "equal"}


def ngrams(words, n) -> Counter:
    """The n-grams of a list of words, counted."""
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def gleu(sources, answers, truth) -> float:
    """GLEU of the corpus (Napoles et al., 2015, as corrected in "GLEU without tuning", 2016).

    log GLEU = min(0, 1 - r/c) + mean_n log(Σ_texts max(0, right_n - left_n) / Σ_texts total_n)        n = 1, 2, 3, 4

    c and r are the numbers of words in answers and references.  An answer has total_n n-grams; right_n of them are in
    the reference; left_n are in the source but not in the reference.  Repeated n-grams count as often as they occur in
    both texts.  If no answer has n words, the mean skips n.  If a sum is 0, GLEU is 0.
    """
    triples = [[*map(scripts.tokens, texts)] for texts in zip(sources, answers, truth, strict=True)]
    words = sum(len(answer) for _, answer, _ in triples)
    brevity = min(0.0, 1 - sum(len(reference) for _, _, reference in triples) / max(1, words))
    logs = []
    for n in (1, 2, 3, 4):
        good = total = 0
        for triple in triples:
            source, answer, reference = (ngrams(words, n) for words in triple)
            left = Counter({gram: count for gram, count in source.items() if gram not in reference})
            good += max(0, (answer & reference).total() - (answer & left).total())
            total += answer.total()
        if total:
            logs.append(math.log(good / total) if good else -math.inf)
    return math.exp(brevity + sum(logs) / len(logs)) if logs else 0.0


def text_to_text(fields, measure, **others):
    """A task whose rows have a source text and a target text, in these fields.

    measure(answers, targets, sources) returns the metrics; all three arguments are lists of texts.
    """
    source, target = fields

    def metrics(answers, rows):
        sources, targets = ([row.values[name] for row in rows] for name in fields)
        return measure(answers, targets, sources)

    return Task(fields=fields, usable=usable_as(source, target), head="seq2seq", examples=examples_of(source, target),
                lengths=lengths_of(source, target), predict=predict_from(source), metrics=metrics, **others)


translate = text_to_text(
    ("source", "target"),
    lambda answers, targets, _: translation(answers, targets),
    name="translate",
    summary="the translation of a text",
    metric_names=("bleu", "chrf", *EXACT),
    packages=("sacrebleu",))
g2p = text_to_text(
    ("source", "target"),
    lambda answers, targets, _: exact_and_edits(answers, targets),
    name="g2p",
    summary="the pronunciation of a word, or any sequence to a sequence",
    metric_names=EXACT)
summarize = text_to_text(
    ("document", "summary"),
    lambda answers, targets, _: summary(answers, targets),
    name="summarize",
    summary="a summary of a document",
    metric_names=("rouge1", "rouge2", "rougeL"),
    packages=("rouge_score.rouge_scorer",))
write = text_to_text(
    ("source", "corrected"),
    lambda answers, targets, sources: correction(sources, answers, targets),
    name="write",
    summary="a text with corrected grammar and style",
    metric_names=("edit_precision", "edit_recall", "edit_f0.5", "gleu", *EXACT))
