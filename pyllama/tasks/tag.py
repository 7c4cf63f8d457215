"""Tagging: the entities of a text, or the part of speech of each of its words.

    Ann     Smith   lives   in   Maine
    B-PER   I-PER   O       O    B-LOC          entities, in the scheme BIO (see tag_files.py)
    PROPN   PROPN   VERB    ADP  PROPN          any names, such as parts of speech

A. A model tags tokens.  A word has the tag of its first token.
B. The other tokens of a word in an entity learn its inside tag, such as I-PER.  So each token of an entity says that it
   belongs to it, as programs expect that look at single tokens, such as Hugging Face's pipelines.  With other names, as
   of parts of speech, they are ignored.
C. A text that is longer than the model's input is split into windows that overlap by half.  A word is tagged in the
   window where it is farther from the ends.
"""
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError
from pyllama.tasks.qa import window_bounds
from pyllama.tasks.tag_files import (
    FIELDS,
    OUTSIDE,
    READERS,
    SPAN_TAG,
    are_spans,
    split_tag,
    unpacked,
)
from pyllama.tasks.task import Task, labels_of, number_of
from pyllama.text import special
from pyllama.training.examples import IGNORE, Examples

AT_ONCE = 32                                                # windows in a batch of predict()
VARIANT = "seqeval: spans of words with their labels; strict: mode='strict', scheme=IOB2"


class Tagging(NamedTuple):
    """The answer to a row."""
    tags: list[str]                                         # of its words
    entities: list[dict[str, Any]]                          # start, end, text, label, score


# Rows

def askable(values):
    """{text, words} of a row that was unpacked."""
    return {name: values["row"][name] for name in ("text", "words")}


def usable(values):
    """{text, words, tags} of a row that was unpacked; tags that mark spans are in the scheme BIO."""
    return {name: values["row"][name] for name in ("text", "words", "tags")}


def labels(rows):
    """The tags in alphabetical order; O first, and both B- and I- of each label.  Raises UserError if there is one."""
    sequences = [row.values["tags"] for row in rows]
    names = {tag for tags in sequences for tag in tags}
    if not are_spans(sequences):
        if len(names) < 2:
            raise UserError(f"every word has the tag {next(iter(names))!r}; give rows with at least 2 tags")
        return sorted(names)
    kinds = sorted({split_tag(tag)[1] for tag in names - {OUTSIDE}})
    if not kinds:
        raise UserError("no word is part of an entity, all have the tag O; give rows with entities")
    return [OUTSIDE, *(f"{letter}-{kind}" for kind in kinds for letter in "BI")]


def inside(tag: str) -> str:
    """The tag of the next token in the same span."""
    letter, kind = split_tag(tag)
    return tag if letter == OUTSIDE else f"I-{kind}"


# Windows

class Window(NamedTuple):
    """A part of a row that fits into the model's input: tokens first to past - 1 of its text."""
    row: int
    ids: np.ndarray                                         # [T] with the special tokens around them
    before: int                                             # number of tokens before those of the text
    first: int
    past: int
    owned: slice                                            # the tokens of the text that are tagged in this window


def windows(rows, trained):
    """(the windows of all rows, the characters [N 2] of each row's tokens)."""
    encoded = trained.tokenizer.encode_with_positions([row.values["text"] for row in rows])
    start, end = special.around(special.framed(trained.tokenizer))
    width = trained.max_length - len(start) - len(end)
    if width < 1:
        raise UserError(f"max_length {trained.max_length} leaves no room for a token of a text; raise it to 16 or more")
    found = []
    for number, (ids, _) in enumerate(encoded):
        bounds = window_bounds(len(ids), width)
        middles = [(first + past) // 2 for (_, past), (first, _) in pairwise(bounds)]
        for (first, past), a, b in zip(bounds, [0, *middles], [*middles, len(ids)], strict=True):
            found.append(Window(number, np.array([*start, *ids[first:past], *end], int), len(start), first, past,
                                slice(a, b)))
    return found, [characters for _, characters in encoded]


def first_tokens(words: Sequence[Sequence[int]], characters: np.ndarray) -> np.ndarray:
    """The number [W] of the first token in each word, -1 if it has none.

    words [W 2], characters [N 2]: the first and past-the-last character of each word, and of each token
    """
    visible = np.flatnonzero(characters[:, 0] < characters[:, 1])
    bounds = np.array(words, int).reshape(-1, 2)
    at = np.searchsorted(characters[visible, 1], bounds[:, 0], side="right")
    tokens = np.append(visible, -1)[at]
    reached = characters[tokens, 0] < bounds[:, 1] if len(characters) else np.zeros(len(bounds), bool)
    return np.where((at < len(visible)) & reached, tokens, -1)


def token_tags(words, tags, characters):
    """The tag of each token, None if it has none; see A and B above.  Arguments as in first_tokens()."""
    found = [None] * len(characters)
    spans = are_spans([tags])
    firsts = first_tokens(words, characters)
    for word in range(len(words) - 1, -1, -1):              # of two words in a token, the first one counts
        first, (_, past) = firsts[word], words[word]
        if first < 0:
            continue
        found[first] = tags[word]
        token = first + 1
        while spans and token < len(characters) and characters[token, 0] < past:
            found[token] = inside(tags[word]) if found[token] is None else found[token]
            token += 1
    return found


# Training and answering

def examples(rows, trained):
    """ids and labels [T] of each window; the label is -100 at special tokens and at those of other windows."""
    found, characters = windows(rows, trained)
    numbers = {tag: number_of(tag, trained.config) for row in rows for tag in row.values["tags"]}
    numbers |= {inside(tag): number_of(inside(tag), trained.config) for tag in numbers if SPAN_TAG.fullmatch(tag)}
    of_rows = [np.array([IGNORE if tag is None else numbers[tag] for tag in
                         token_tags(row.values["words"], row.values["tags"], of_row)], int)
               for row, of_row in zip(rows, characters, strict=True)]
    made = []
    for window in found:
        labels = np.full(len(window.ids), IGNORE)
        shift = window.before - window.first
        labels[window.owned.start + shift:window.owned.stop + shift] = of_rows[window.row][window.owned]
        made.append({"ids": window.ids, "labels": labels})
    return Examples(made)


@memory.arena()
@machine.one_blas_thread()
def predict(rows, trained, search=None):
    """The Tagging of each row."""
    found, characters = windows(rows, trained)
    scores = [np.zeros((len(of_row), trained.config.num_labels), np.float32) for of_row in characters]
    for begin, batch in Examples([{"ids": window.ids} for window in found]).in_turn(AT_ONCE):
        z = trained.scores(batch.inputs)
        for window, of_window in zip(found[begin:], z, strict=False):
            shift = window.before - window.first
            scores[window.row][window.owned] = of_window[window.owned.start + shift:window.owned.stop + shift]
    names = tag_names(trained.config)
    return [tagging(row.values, *arguments, names) for row, *arguments in zip(rows, characters, scores, strict=True)]


def tag_names(config) -> list[str]:
    """The names of the tags.  Where one is O, others without a letter before them have I-, as in Hugging Face."""
    names = labels_of(config)
    return [name if OUTSIDE not in names or SPAN_TAG.fullmatch(name) else f"I-{name}" for name in names]


def tagging(values, characters, z, names) -> Tagging:
    """The Tagging of a row from the scores z [N C] of its tokens, whose characters are [N 2]."""
    words = values["words"]
    probabilities = np.exp(z - z.max(axis=-1, keepdims=True, initial=-np.inf))
    certain = 1 / probabilities.sum(axis=-1)                # the probability of the likeliest tag
    firsts = first_tokens(words, characters)
    spans = all(SPAN_TAG.fullmatch(name) for name in names)
    tags = []
    for word, token in enumerate(firsts):
        tag = names[z[token].argmax()] if token >= 0 else OUTSIDE if spans else names[0]
        shared = word and token >= 0 and token == firsts[word - 1]
        tags.append(inside(tag) if shared and spans else tag)
    if spans and {split_tag(name)[0] for name in names} != {OUTSIDE, "B", "I"}:
        tags = as_bio(tags)
    entities = []
    for label, first, past in (spans_of if spans else word_spans_of)(tags):
        start, end = words[first][0], words[past - 1][1]
        within = (characters[:, 0] < end) & (characters[:, 1] > start)
        score = float(certain[within].mean()) if within.any() else 0.0
        entities.append({"start": start, "end": end, "text": values["text"][start:end], "label": label,
                         "score": round(score, 6)})
    return Tagging(tags, entities)


def detailed(rows, trained, search):
    """(the Tagging of each row, {its text, its words, their tags} as far as the file does not have them)."""
    answers, details = predict(rows, trained, search), []
    for row, answer in zip(rows, answers, strict=True):
        words = [row.values["text"][first:past] for first, past in row.values["words"]]
        new = {name: value for name, value in (("text", row.values["text"]), ("tokens", words))
               if row.given.get(name) != value}
        details.append({**new, "predicted_tags": answer.tags})
    return answers, details


def notes(rows, trained, search):
    """Notes on texts and on words that are longer than the model's input."""
    found, characters = windows(rows, trained)
    lines = []
    if long := sum(count > 1 for count in Counter(window.row for window in found).values()):
        lines.append(f"{long} of {len(rows)} texts have more than {trained.max_length} tokens; they are read in "
                     f"windows that overlap by half")
    width = max((window.past - window.first for window in found), default=0)
    for row, of_row in zip(rows, characters, strict=True) if lines else ():
        firsts = first_tokens(row.values["words"], of_row)
        lengths = np.diff([*firsts[firsts >= 0], len(of_row)])
        if lengths.size and lengths.max() > width:
            first, past = row.values["words"][np.flatnonzero(firsts >= 0)[lengths.argmax()]]
            lines.append(f"{row.place}: the word {row.values['text'][first:past][:30]!r} has {lengths.max()} tokens, "
                         f"more than the model reads at once; only its beginning counts")
    return lines


# Metrics

def spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first word, past the last) of the spans in tags of BIO or BIOES, as conlleval and seqeval read them.

    A span also begins where its first tag says that it goes on, and at another label.
    """
    spans: list[tuple[str, int, int]] = []
    before = OUTSIDE, ""
    for word, tag in enumerate(tags):
        letter, label = split_tag(tag)
        ends_before = before[0] in ("E", "S", OUTSIDE) or before[1] != label
        if letter != OUTSIDE and (letter in ("B", "S") or ends_before):
            spans.append((label, word, word + 1))
        elif letter != OUTSIDE:
            spans[-1] = (*spans[-1][:2], word + 1)
        before = letter, label
    return spans


def as_bio(tags: Sequence[str]) -> list[str]:
    """The spans of tags in another scheme, such as BIOES, or I- alone, as tags in BIO."""
    result = [OUTSIDE] * len(tags)
    for label, first, past in spans_of(tags):
        result[first:past] = [f"B-{label}", *[f"I-{label}"] * (past - first - 1)]
    return result


def strict_spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The spans of tags in BIO that begin with B-; other words with I- belong to none."""
    return [span for span in spans_of(tags) if tags[span[1]].startswith("B")]


def word_spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Each word as a span, for tags that are names of words."""
    return [(tag, word, word + 1) for word, tag in enumerate(tags)]


def span_scores(answers, truth, spans=spans_of) -> dict:
    """Precision, recall and F1 of the spans in sequences of tags: micro, macro, and of each label.

    A quotient with the denominator 0 is 0.  The mean is over the labels that occur in answers or truth.
    """
    found: dict[str, list[set]] = defaultdict(lambda: [set(), set()])
    for side, sequences in enumerate((answers, truth)):
        for number, tags in enumerate(sequences):
            for label, first, past in spans(tags):
                found[label][side].add((number, first, past))
    counts = {label: (len(ours & theirs), len(ours), len(theirs)) for label, (ours, theirs) in sorted(found.items())}
    labels = {label: quotients(*count) | {"support": count[2]} for label, count in counts.items()}
    micro = quotients(*map(sum, zip(*counts.values(), strict=True))) if counts else quotients(0, 0, 0)
    macro = {name: sum(of[name] for of in labels.values()) / max(1, len(labels)) for name in micro}
    return {"micro": micro, "macro": macro, "labels": labels}


def quotients(right: int, predicted: int, true: int) -> dict[str, float]:
    """Precision, recall and F1 from counts of spans."""
    return {"precision": right / max(1, predicted), "recall": right / max(1, true),
            "f1": 2 * right / max(1, predicted + true)}


def metrics(answers, rows):
    """Accuracy over the words, and precision, recall and F1 of each label; of entities as seqeval computes them: see
    span_scores()."""
    truth, predicted = [row.values["tags"] for row in rows], [answer.tags for answer in answers]
    right = sum(a == b for ours, theirs in zip(predicted, truth, strict=True)
                for a, b in zip(ours, theirs, strict=True))
    words = sum(map(len, truth))
    shared = {"accuracy": right / max(1, words), "words": words, "rows": len(rows)}
    if not are_spans([*truth, *predicted]):
        scores = span_scores(predicted, truth, word_spans_of)
        return {"f1_macro": scores["macro"]["f1"], "by_label": scores["labels"], **shared}
    scores, strict = span_scores(predicted, truth), span_scores(predicted, truth, strict_spans_of)
    return {**{f"{name}_micro": value for name, value in scores["micro"].items()}, "f1_macro": scores["macro"]["f1"],
            "f1_strict_micro": strict["micro"]["f1"], "f1_strict_macro": strict["macro"]["f1"], "variant": VARIANT,
            "by_label": scores["labels"], **shared}


task = Task(
    name="tag",
    summary="the entities of a text, or the part of speech of each word",
    fields=FIELDS,
    readers=READERS,
    unpacked=unpacked,
    usable=usable,
    askable=askable,
    head="tagging",
    labels=labels,
    texts=lambda values: [values["text"]],
    tokenizer=special.separate_words,
    examples=examples,
    predict=predict,
    detailed=detailed,
    notes=notes,
    shown=lambda answer: answer.entities,
    metrics=metrics,
    metric_names=("f1_micro", "f1_macro", "f1_strict_micro", "accuracy"),
    quick=True,
    ranked_by="f1_micro")
