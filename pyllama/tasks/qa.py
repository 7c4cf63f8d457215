"""Extractive question answering: the answer is a span of the context.

    [CLS] question [SEP] a window of the context [SEP]      types: 0 up to the first [SEP], 1 after it

A. A context that is longer than the model's input is split into windows that overlap by half, so that an answer of up
   to half a window is complete in one of them.
B. In a window without the complete answer, the label is the first token, as in BERT.  If such windows were left out of
   the loss, their spans could have any score, and could win against the window that has the answer.
C. So the first token's score means "not here", and a span's score is taken relative to it.  Only these differences are
   comparable between windows, because a softmax does not change when a number is added to all scores of a window.
D. A question may have no answer, as in SQuAD 2.0 (Rajpurkar et al., 2018).  Then the label of each of its windows is
   the first token, and the answer is "" if the best span's score is below a threshold.  The threshold is the one with
   the highest F1 on the validation rows, at each evaluation; a model of rows that all have answers has none.
"""
import re
import string
import unicodedata
from collections import Counter
from functools import partial
from typing import NamedTuple

import numpy as np

from pyllama import machine, memory
from pyllama.errors import UserError
from pyllama.tasks.row_files import NOT_OBJECT, json_array, json_lines
from pyllama.tasks.rows import BadRow, text_of
from pyllama.tasks.task import Task
from pyllama.text import scripts, special
from pyllama.training.examples import Examples

AT_ONCE = 32                                                # windows in a batch of predict()
LONGEST = 30                                                # tokens of an answer
INSIDE = ("paragraphs", "qas")                              # SQuAD's nested lists


# Rows

def unfolding(reader):
    """A reader that flattens SQuAD's nested lists: a row for each question, with the fields of the outer objects."""
    def read(path, text, wanted, spare):
        for place, values in reader(path, text, wanted, spare):
            yield from unfolded(place, values)
    return read


def unfolded(place, values):
    """(place, values) of each row in an object that may contain lists of objects."""
    name = next((name for name in INSIDE if name in values), None) if isinstance(values, dict) else None
    if name is None:
        yield place, values
    elif not isinstance(values[name], list):
        yield place, BadRow(f"{name!r} is {values[name]!r}, not a list")
    else:
        around = {key: value for key, value in values.items() if key != name}
        for number, inner in enumerate(values[name], 1):
            within = {**around, **inner} if isinstance(inner, dict) else BadRow(NOT_OBJECT)
            yield from unfolded(f"{place}, {name[:-1]} {number}", within)


def unpacked(values):
    """The row with its list of answers as the field answer, if that is absent; of an impossible question, without any.

    Raises BadRow if an impossible question has an answer.
    """
    if str(values.get("is_impossible")).casefold() == "true":
        if any(has_text(values.get(name)) for name in ("answer", "answers")):
            raise BadRow("it has an answer, although is_impossible is true")
        return {**values, "answer": "", "answers": []}
    return {"answer": values["answers"], **values} if "answers" in values else values


def has_text(stored) -> bool:
    """Has a row's answer a text: itself, in a list of answers, or in two lists side by side?"""
    if isinstance(stored, dict):
        stored = stored.get("text")
    return any(map(has_text, stored)) if isinstance(stored, list) else bool(stored)


def askable(values):
    """{context, question} of a row.  Raises BadRow."""
    return {name: text_of(values, name) for name in ("context", "question")}


def usable(values):
    """{context, question, answer, answers} of a row: all reference answers, as in SQuAD; training uses the first.

    A question without an answer has the answer "" and no answers.  Raises BadRow if an answer is not in the context.
    """
    row = askable(values)
    stored = values.get("answers", values["answer"])
    if isinstance(stored, dict) and not all(isinstance(stored.get(name), list) for name in ("text", "answer_start")):
        raise BadRow(f"the answers {stored!r} are not two lists, 'text' and 'answer_start'")
    if isinstance(stored, dict):                            # lists side by side, as in Hugging Face's datasets
        stored = [{"text": text, "answer_start": start} for text, start
                  in zip(stored["text"], stored["answer_start"], strict=False)]
    elif stored == "":
        stored = []
    elif not isinstance(stored, list):
        stored = [{"text": stored, "answer_start": values.get("start", values.get("answer_start"))}]
    answers = [located(row["context"], answer) for answer in stored]
    return {**row, "answer": answers[0]["text"] if answers else "", "answers": answers}


def remarks(rows):
    """A note on the questions without an answer, if there are any."""
    count = sum(not row.values["answers"] for row in rows)
    return [f"{count} of {len(rows)} questions have no answer"] if count else []


def located(context, answer):
    """{text, answer_start} of an answer, stripped of white space.  Without a start, it is the first occurrence."""
    if not isinstance(answer, dict):
        raise BadRow(f"the answer {answer!r} is not an object with 'text' and 'answer_start'")
    text, start = text_of(answer, "text"), answer.get("answer_start")
    try:
        start = context.find(text) if start in (None, "") else int(start)
    except (TypeError, ValueError, OverflowError):
        raise BadRow(f"the answer {text!r} has the start {start!r}, which is not a number") from None
    if start < 0 or context[start:start + len(text)] != text:
        if start < 0:
            raise BadRow(f"the answer {text!r} does not occur in its context")
        raise BadRow(f"the answer {text!r} does not occur at character {start} of its context, which has "
                     f"{context[start:start + len(text)]!r} there")
    return {"text": text.strip(), "answer_start": start + len(text) - len(text.lstrip())}


# Windows

class Window(NamedTuple):
    """A part of a row that fits into the model's input: tokens first to past - 1 of the context."""
    row: int
    inputs: dict                                            # ids [T], and types [T] if the model has token types
    before: int                                             # number of tokens before those of the context
    first: int
    past: int
    characters: np.ndarray                                  # [N 2] first and past-the-last character of the N tokens


def windows(rows, trained):
    """The windows of each row's context, after its question, which is truncated to half of the room.

    Raises UserError if there is no room for a question and a context.
    """
    tokenizer = trained.tokenizer
    start, middle, end = edges(tokenizer)
    room = trained.max_length - len(start) - len(middle) - len(end)
    if room < 2:
        raise UserError(f"max_length {trained.max_length} leaves no room for a question and a context; raise it to 64 "
                        f"or more")
    contexts = list(dict.fromkeys(row.values["context"] for row in rows))
    encoded = dict(zip(contexts, tokenizer.encode_with_positions(contexts), strict=True))
    questions = tokenizer.encode_batch([row.values["question"] for row in rows])
    for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
        ids, characters = encoded[row.values["context"]]
        before = np.concatenate([start, question[:room // 2], middle]).astype(int)
        for first, past in window_bounds(len(ids), trained.max_length - len(before) - len(end)):
            inputs = {"ids": np.concatenate([before, ids[first:past], end]).astype(int)}
            if trained.config.takes_types:
                inputs["types"] = (np.arange(len(inputs["ids"])) >= len(before)).astype(int)
            yield Window(number, inputs, len(before), first, past, characters)


def edges(tokenizer):
    """The ids of the special tokens before the question, between question and context, and after the context."""
    return special.around(special.framed(tokenizer), texts=2)


def lengths(rows, trained):
    """Twice the tokens of each question, and the special tokens.  Contexts are not truncated."""
    edge = sum(map(len, edges(trained.tokenizer)))
    return [2 * len(question) + edge
            for question in trained.tokenizer.encode_batch([row.values["question"] for row in rows])]


def window_bounds(count, width):
    """(first, past) of windows of `width` tokens that cover `count` tokens; each overlaps the last by width // 2."""
    starts = range(0, max(count - width // 2, 1), width - width // 2)
    return [(first, min(first + width, count)) for first in starts]


# Training and answering

def examples(rows, trained):
    """The inputs and the label [2] of each window."""
    return Examples([{**window.inputs, "labels": label(window, next(iter(rows[window.row].values["answers"]), None))}
                     for window in windows(rows, trained)])


def label(window, answer):
    """The positions [2] of the answer's first and last token in the window; 0, 0 if it is incomplete (see B above), or
    None."""
    if answer is None:
        return np.zeros(2, int)
    start, characters = answer["answer_start"], window.characters
    within = np.flatnonzero((characters[:, 1] > start) & (characters[:, 0] < start + len(answer["text"])))
    if not within.size or within[0] < window.first or within[-1] >= window.past:
        return np.zeros(2, int)
    return window.before - window.first + within[[0, -1]]


def predict(rows, trained, search=None):
    """The most likely span of each context, a text; "" if its score is below the model's threshold."""
    return detailed(rows, trained)[0]


def detailed(rows, trained, search=None):
    """(the answers, {score, start}: the score of the best span above that of no answer, and its first character)"""
    least = trained.entry.get("least_score", -np.inf)
    answers, details = [], []
    for row, (score, first, past) in zip(rows, spans(rows, trained), strict=True):
        is_answer = score >= least and past > first
        answers.append(row.values["context"][first:past] if is_answer else "")
        details.append({"score": round(score, 6) if np.isfinite(score) else None,
                        "start": first if is_answer else None})
    return answers, details


@memory.arena()
@machine.one_blas_thread()
def spans(rows, trained):
    """(score, first, past) of the most likely span of each context: its score above no answer's, its characters."""
    row_windows = list(windows(rows, trained))
    best = [(-np.inf, 0, 0)] * len(rows)
    for begin, batch in Examples([window.inputs for window in row_windows]).in_turn(AT_ONCE):
        z = trained.scores(batch.inputs)
        for window, scores in zip(row_windows[begin:], z, strict=False):
            of_context = scores[window.before:window.before + window.past - window.first]
            score, first, past = likeliest(of_context, window.characters[window.first:window.past])
            best[window.row] = max(best[window.row], (float(score - scores[0].sum()), first, past))
    return best


def calibrated(rows, trained):
    """{"least_score": ...}: the score from which on a span is the answer; {} if all rows have answers."""
    if all(row.values["answers"] for row in rows):
        return {}
    found = spans(rows, trained)
    texts = [row.values["context"][first:past] for row, (_, first, past) in zip(rows, found, strict=True)]
    gains = np.array([f1 if row.values["answers"] else f1 - 1
                      for row, (_, f1) in zip(rows, scored(texts, rows), strict=True)])
    return {"least_score": best_threshold(np.array([score for score, *_ in found]), gains)}


def best_threshold(scores, gains):
    """The t that gives the highest sum of gains [N] over scores [N] >= t; of several the highest.

    Above all scores, where the sum is 0, if no other sum is higher.  As SQuAD's script chooses it, from the gain in F1
    of answering a question: its F1 or, without an answer, -1.
    """
    order = np.argsort(-scores, kind="stable")
    scores, sums = scores[order], np.cumsum(gains[order])
    complete = np.append(scores[1:] < scores[:-1], True)    # equal scores are answered together
    best = int(np.argmax(np.where(complete, sums, -np.inf)))
    finite = scores[np.isfinite(scores)]
    if sums[best] <= 0 or not finite.size:
        return float(np.nextafter(finite[0], np.inf)) if finite.size else 0.0
    return float(max(scores[best], finite[-1]))


def likeliest(z, characters):
    """(score, first, past) of the span with the highest score, in characters.

    z             [N 2] scores of N tokens as first and as last token
    characters    [N 2] their first and past-the-last character; a token of white space has none and ends no span
    """
    z = np.where(characters[:, :1] < characters[:, 1:], z, -np.inf)
    length = np.arange(len(z)) - np.arange(len(z))[:, None] + 1
    scores = np.where((length > 0) & (length <= LONGEST), z[:, :1] + z[:, 1], -np.inf)
    if not np.isfinite(scores).any():
        return -np.inf, 0, 0
    first, last = divmod(int(scores.argmax()), len(z))
    return float(scores[first, last]), int(characters[first, 0]), int(characters[last, 1])


# Metrics

def metrics(answers, rows):
    """Exact match and F1 as in SQuAD's script, but as shares of 1: the best over the reference answers, the mean over
    the rows.  Case, punctuation and the articles a, an, the are ignored.

    F1 is of words or, if most letters of the contexts are of scripts without spaces, of characters.  If questions have
    no answer, also the means over those that have one (HasAns) and those that have none (NoAns).
    """
    scores = np.array(scored(answers, rows))
    has_answer = np.array([bool(row.values["answers"]) for row in rows])
    parts = {} if has_answer.all() else {"HasAns": scores[has_answer], "NoAns": scores[~has_answer]}
    of_parts = {f"{part}_{name}": value for part, of_part in parts.items() if len(of_part)
                for name, value in (*zip(("exact", "f1"), of_part.mean(axis=0).tolist(), strict=True),
                                    ("total", len(of_part)))}
    exact_match, mean_f1 = scores.mean(axis=0).tolist()
    return {"exact_match": exact_match, "f1": mean_f1, **of_parts,
            "segmentation": "characters" if unspaced(rows) else "words", "rows": len(rows)}


def scored(answers, rows):
    """(exact match, F1) of each answer, the best over the row's reference answers; without any, "" is right."""
    by_character, scores = unspaced(rows), []
    all_answered = all(row.values["answers"] for row in rows)
    for answer, row in zip(answers, rows, strict=True):
        references = [pieces(reference["text"], by_character) for reference in row.values["answers"]]
        if not all_answered:                                # as in the script of SQuAD 2.0, unlike that of 1.1
            references = list(filter(None, references)) or [[]]
        answer = pieces(answer, by_character)
        scores.append((float(answer in references), max(f1(answer, reference) for reference in references)))
    return scores


def unspaced(rows):
    """Are most letters of the contexts of scripts without spaces?"""
    return scripts.mostly_unspaced(row.values["context"] for row in rows)


def pieces(text, by_character):
    """The words or characters of a text that are compared."""
    text = "".join(c for c in text.lower() if c not in string.punctuation
                   and not (by_character and unicodedata.category(c).startswith("P")))
    words = re.sub(r"\b(a|an|the)\b", " ", text).split()
    return list("".join(words)) if by_character else words


def f1(answer, reference):
    """2 · (number of common pieces) / (number of pieces of both); of two empty lists 1."""
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))


task = Task(
    name="qa",
    summary="the span of a text that answers a question",
    fields=("context", "question", "answer"),
    readers={".json": unfolding(json_array), ".jsonl": unfolding(json_lines)},
    unpacked=unpacked,
    usable=usable,
    askable=askable,
    remarks=remarks,
    head="span",
    # Of scripts without spaces each character is a token, because longer ones would often cross the end of an answer.
    tokenizer=partial(special.byte_pairs, alone=scripts.UNSPACED.pattern),
    examples=examples,
    lengths=lengths,
    predict=predict,
    detailed=detailed,
    calibrated=calibrated,
    metrics=metrics,
    metric_names=("exact_match", "f1"))
