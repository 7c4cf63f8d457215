"""A text for a text: translation, spelling to sound, summaries, corrections.  They differ in how they are measured."""
import math
from collections import Counter
from difflib import SequenceMatcher

import numpy as np

from pyllama import beam
from pyllama.errors import optional
from pyllama.tasks.rows import text_of
from pyllama.tasks.task import Task, encode
from pyllama.training.examples import Examples

AT_ONCE = 32
EXACT = ("exact_match", "edit_error_rate")


def usable_as(source, target):
    def usable(values):
        return {source: text_of(values, source), target: text_of(values, target)}
    return usable


def examples_of(source, target):
    """The decoder's start token is not part of a target; its end token is."""
    def examples(rows, trained):
        sources, targets = (encode(trained.tokenizer, [row.values[name] for row in rows], trained.max_length)
                            for name in (source, target))
        start = trained.tokenizer.bos_id
        return Examples([{"ids": ids, "labels": labels[1:] if len(labels) and labels[0] == start else labels}
                         for ids, labels in zip(sources, targets, strict=True)])
    return examples


def predict_from(source):
    def predict(rows, trained, search=None):
        ids = encode(trained.tokenizer, [row.values[source] for row in rows], trained.max_length)
        by_length = sorted(range(len(rows)), key=lambda i: len(ids[i]))
        answers = {}
        for first in range(0, len(rows), AT_ONCE):
            batch = by_length[first:first + AT_ONCE]
            targets = beam.targets(trained.params, trained.config, [ids[i] for i in batch], search,
                                   trained.tokenizer.vocab_size)
            for i, best in zip(batch, targets, strict=True):
                answers[i] = trained.tokenizer.decode(best[0].ids, skip_special_tokens=True)
        return [answers[i] for i in range(len(rows))]
    return predict


# Measures

def exact_and_edits(answers, truth) -> dict:
    """The share of answers without a mistake, and edits (of a character: put in, left out, exchanged) a character."""
    return {"exact_match": float(np.mean([a == b for a, b in zip(answers, truth, strict=True)])),
            "edit_error_rate": sum(map(edits, answers, truth)) / max(1, sum(map(len, truth))), "rows": len(truth)}


def edits(a, b) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def translation(answers, truth) -> dict:
    """BLEU and chrF as sacrebleu takes them, with its signatures; Chinese is cut by its tokenizer "zh"."""
    sacrebleu = optional("sacrebleu", "the task translate")
    chinese = any("\u4e00" <= character <= "\u9fff" for text in truth for character in text)
    bleu, chrf = sacrebleu.BLEU(tokenize="zh" if chinese else "13a"), sacrebleu.CHRF()
    return {"bleu": bleu.corpus_score(answers, [truth]).score, "bleu_signature": str(bleu.get_signature()),
            "chrf": chrf.corpus_score(answers, [truth]).score, "chrf_signature": str(chrf.get_signature()),
            **exact_and_edits(answers, truth)}


def summary(answers, truth) -> dict:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L as the package rouge-score takes them, with Porter's stemmer; mean over rows.
    """
    rouge = optional("rouge_score.rouge_scorer", "the task summarise")
    scorer = rouge.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(b, a) for a, b in zip(answers, truth, strict=True)]
    return {**{name: float(np.mean([score[name].fmeasure for score in scores])) for name in scores[0]},
            "variant": "rouge-score, use_stemmer=True, F-measure, mean over rows", "rows": len(truth)}


def correction(sources, answers, truth) -> dict:
    """Of the words changed: precision, recall and F0.5, which counts precision twice (Ng et al., 2014); GLEU.  An edit
    is right if the reference has it at the same place."""
    right = predicted = true = 0
    for source, answer, reference in zip(sources, answers, truth, strict=True):
        ours, theirs = changes(source, answer), changes(source, reference)
        right += len(ours & theirs)
        predicted += len(ours)
        true += len(theirs)
    precision, recall = right / predicted if predicted else 1.0, right / true if true else 1.0
    below = 0.25 * precision + recall
    return {"edit_precision": precision, "edit_recall": recall,
            "edit_f0.5": 1.25 * precision * recall / below if below else 0.0, "gleu": gleu(sources, answers, truth),
            **exact_and_edits(answers, truth)}


def changes(source, text) -> set:
    """{(first word, past the last, what stands there instead)}"""
    a, b = source.split(), text.split()
    return {(i, j, *b[k:end]) for kind, i, j, k, end in SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes()
            if kind != "equal"}


def ngrams(words, n) -> Counter:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def gleu(sources, answers, truth) -> float:
    """GLEU of all texts together (Napoles et al., 2015, as corrected in "GLEU without tuning", 2016).

    log GLEU = min(0, 1 - r/c) + mean_n log(Σ_texts max(0, right_n - left_n) / Σ_texts total_n)        n = 1, 2, 3, 4

    c and r are the words of answers and references.  Of an answer's n-grams, total_n in number, right_n are in the
    reference and left_n in the source but nowhere in the reference, each as often as in both texts.  Where no answer
    has n words, the mean goes without n; a sum of 0 makes GLEU 0.
    """
    triples = [[text.split() for text in texts] for texts in zip(sources, answers, truth, strict=True)]
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

    measure(answers, targets, sources) gives the metrics; all three are lists of texts.
    """
    source, target = fields

    def metrics(answers, rows):
        sources, targets = ([row.values[name] for row in rows] for name in fields)
        return measure(answers, targets, sources)

    return Task(fields=fields, usable=usable_as(source, target), head="seq2seq", examples=examples_of(source, target),
                predict=predict_from(source), metrics=metrics, **others)


translate = text_to_text(
    ("source", "target"),
    lambda answers, targets, _: translation(answers, targets),
    name="translate",
    summary="a text in another language",
    metric_names=("bleu", "chrf", *EXACT),
    packages=("sacrebleu",))
g2p = text_to_text(
    ("source", "target"),
    lambda answers, targets, _: exact_and_edits(answers, targets),
    name="g2p",
    summary="how a word is spoken, or any sequence for a sequence",
    metric_names=EXACT)
summarise = text_to_text(
    ("document", "summary"),
    lambda answers, targets, _: summary(answers, targets),
    name="summarise",
    summary="a short text for a long one",
    metric_names=("rouge1", "rouge2", "rougeL"),
    packages=("rouge_score.rouge_scorer",))
write = text_to_text(
    ("source", "corrected"),
    lambda answers, targets, sources: correction(sources, answers, targets),
    name="write",
    summary="a text without mistakes of grammar and style",
    metric_names=("edit_precision", "edit_recall", "edit_f0.5", "gleu", *EXACT))
