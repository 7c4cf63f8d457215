"""A question answered by a stretch of a text: extractive question answering.

    [CLS] question [SEP] a window of the context [SEP]      types: 0 up to the first [SEP], 1 after it

A. A context that is longer than the model reads is read through windows.  Each begins where the first half of the one
   before ends, so that an answer of up to half a window is whole in one of them, with some of what stands around it.
B. A window without the whole answer has its first token as first and last place, as BERT's authors had it.  Left out
   of the loss, such a window could give any stretch any score, and would outbid the window that has the answer.
C. So the first token's score says "not here", and a stretch is worth what it scores above that: a softmax does not
   feel a number added to all scores of a window, only these differences can be compared between windows.
"""
import re
import string
import unicodedata
from collections import Counter
from functools import partial
from typing import NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.tasks.rows import NOT_OBJECT, BadRow, json_array, json_lines, text_of
from pyllama.tasks.task import Task
from pyllama.text import special
from pyllama.training.examples import Examples

AT_ONCE = 32
LONGEST = 30                                                # tokens of an answer
# Writing without spaces.  Each character has a token of its own, else one would often reach over the answer's end.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"
INSIDE = ("paragraphs", "qas")                              # SQuAD's lists of objects in an object


# Rows

def unfolding(reader):
    """A reader that gives each object in SQuAD's lists a row, with what is said of all of them beside it."""
    def read(path, text, wanted, spare):
        for place, values in reader(path, text, wanted, spare):
            yield from unfolded(place, values)
    return read


def unfolded(place, values):
    if not isinstance(values, dict):
        yield place, values
    elif (name := next((name for name in INSIDE if name in values), None)) is None:
        yield place, {"answer": values["answers"], **values} if "answers" in values else values
    elif not isinstance(values[name], list):
        yield place, BadRow(f"{name!r} is {values[name]!r}, not a list")
    else:
        around = {key: value for key, value in values.items() if key != name}
        for number, inner in enumerate(values[name], 1):
            within = {**around, **inner} if isinstance(inner, dict) else BadRow(NOT_OBJECT)
            yield from unfolded(f"{place}, {name[:-1]} {number}", within)


def askable(values):
    return {name: text_of(values, name) for name in ("context", "question")}


def usable(values):
    """With all `answers` that count as right, as SQuAD has them; the first is learned."""
    row = askable(values)
    stored = values.get("answers", values["answer"])
    if isinstance(stored, dict) and not all(isinstance(stored.get(name), list) for name in ("text", "answer_start")):
        raise BadRow(f"the answers {stored!r} are not two lists, 'text' and 'answer_start'")
    if isinstance(stored, dict):                            # lists side by side, as in Hugging Face's datasets
        stored = [{"text": text, "answer_start": start} for text, start
                  in zip(stored["text"], stored["answer_start"], strict=False)]
    elif not isinstance(stored, list):
        stored = [{"text": stored, "answer_start": values.get("start", values.get("answer_start"))}]
    if not stored:
        raise BadRow("it has no answer, and a question that its context does not answer cannot be learned here")
    answers = [located(row["context"], answer) for answer in stored]
    return {**row, "answer": answers[0]["text"], "answers": answers}


def located(context, answer):
    """An answer without white space around it, and its first character's place, the first possible one if not given."""
    if not isinstance(answer, dict):
        raise BadRow(f"the answer {answer!r} is not an object with 'text' and 'answer_start'")
    text, start = text_of(answer, "text"), answer.get("answer_start")
    try:
        start = context.find(text) if start in (None, "") else int(start)
    except (TypeError, ValueError, OverflowError):
        raise BadRow(f"the answer {text!r} starts at {start!r}, which is not a number") from None
    if start < 0 or context[start:start + len(text)] != text:
        there = f"at character {start} of its context, {context[max(start, 0):][:len(text)]!r} does"
        raise BadRow(f"the answer {text!r} does not stand {there if start >= 0 else 'in its context'}")
    return {"text": text.strip(), "answer_start": start + len(text) - len(text.lstrip())}


# Windows

class Window(NamedTuple):
    """What the model reads of a row in one go."""
    row: int
    inputs: dict                                            # ids [T], and types [T] where the model has types
    before: int                                             # tokens before those of the context
    first: int                                              # token of the context that it begins with
    past: int
    places: np.ndarray                                      # [N 2] characters of all tokens of the context


def windows(rows, trained):
    """Windows of each row's context, after its question, which is cut to half of what there is room for."""
    tokenizer = trained.tokenizer
    start, middle, end = around(tokenizer)
    room = trained.max_length - len(start) - len(middle) - len(end)
    if room < 2:
        raise UserError(f"max_length {trained.max_length} has no room for a question and a context; raise it to 64 or "
                        f"more")
    contexts = list(dict.fromkeys(row.values["context"] for row in rows))
    encoded = dict(zip(contexts, tokenizer.encode_with_positions(contexts), strict=True))
    questions = tokenizer.encode_batch([row.values["question"] for row in rows])
    for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
        ids, places = encoded[row.values["context"]]
        before = np.concatenate([start, question[:room // 2], middle]).astype(int)
        for first, past in stretches(len(ids), trained.max_length - len(before) - len(end)):
            inputs = {"ids": np.concatenate([before, ids[first:past], end]).astype(int)}
            if getattr(trained.config, "type_vocab_size", 1) > 1:
                inputs["types"] = (np.arange(len(inputs["ids"])) >= len(before)).astype(int)
            yield Window(number, inputs, len(before), first, past, places)


def stretches(count, wide):
    """(first, past) of windows of `wide` tokens that cover `count`; each shares wide // 2 with the one before."""
    return [(first, min(first + wide, count)) for first in range(0, max(count - wide // 2, 1), wide - wide // 2)]


def around(tokenizer):
    """The special tokens before a question, between it and its context, and after this."""
    if tokenizer.rust.num_special_tokens_to_add(is_pair=True):
        pair = tokenizer.rust.encode("a", "a")
        of = np.array([-1 if text is None else text for text in pair.sequence_ids])
        (a, b), (c, d) = np.flatnonzero(of == 0)[[0, -1]], np.flatnonzero(of == 1)[[0, -1]]
        return pair.ids[:a], pair.ids[b + 1:c], pair.ids[d + 1:]
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id], end, end


# Learning and answering

def examples(rows, trained):
    return Examples([{**window.inputs, "labels": label(window, rows[window.row].values["answers"][0])}
                     for window in windows(rows, trained)])


def label(window, answer):
    """The answer's first and last place in a window that has all of it, else 0, the first token's (see B above)."""
    start, places = answer["answer_start"], window.places
    within = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < start + len(answer["text"])))
    if not within.size or within[0] < window.first or within[-1] >= window.past:
        return np.zeros(2, int)
    return window.before - window.first + within[[0, -1]]


def predict(rows, trained, search=None):
    """The likeliest stretch of each context."""
    return [row.values["context"][first:past] for row, (first, past) in zip(rows, spans(rows, trained), strict=True)]


def spans(rows, trained):
    """(first, past) characters of the likeliest answer in each context."""
    all_of_them, best = list(windows(rows, trained)), [(-np.inf, 0, 0)] * len(rows)
    for begin, batch in Examples([window.inputs for window in all_of_them]).in_turn(AT_ONCE):
        z, _ = trained.config.model.logits(p=trained.params, c=trained.config, **batch.inputs)
        for window, scores in zip(all_of_them[begin:], z, strict=False):
            of_context = scores[window.before:window.before + window.past - window.first]
            score, first, past = likeliest(of_context, window.places[window.first:window.past])
            best[window.row] = max(best[window.row], (score - scores[0].sum(), first, past))
    return [(first, past) for _, first, past in best]


def likeliest(z, places):
    """(score, first, past) of the best stretch, given z [N 2] of N tokens as its first and its last, and their places.

    Its ends are no white space.
    """
    z = np.where(places[:, :1] < places[:, 1:], z, -np.inf)
    length = np.arange(len(z)) - np.arange(len(z))[:, None] + 1
    scores = np.where((length > 0) & (length <= LONGEST), z[:, :1] + z[:, 1], -np.inf)
    if not np.isfinite(scores).any():
        return -np.inf, 0, 0
    first, last = divmod(int(scores.argmax()), len(z))
    return float(scores[first, last]), int(places[first, 0]), int(places[last, 1])


# Measures

def metrics(answers, rows):
    """Exact match and F1 as SQuAD's script has them, but as shares of 1: the best over the answers that count as right,
    the mean over rows; without case, punctuation and the articles a, an, the.

    F1 is of words; where most contexts have Chinese in them, of characters, white space being nothing.
    """
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", row.values["context"])) for row in rows) * 2 > len(rows)
    pairs = [(pieces(answer, chinese), [pieces(reference["text"], chinese) for reference in row.values["answers"]])
             for answer, row in zip(answers, rows, strict=True)]
    return {"exact_match": float(np.mean([answer in references for answer, references in pairs])),
            "f1": float(np.mean([max(f1(answer, reference) for reference in references)
                                 for answer, references in pairs])),
            "segmentation": "characters" if chinese else "words", "rows": len(rows)}


def pieces(text, chinese):
    """Words or characters that are compared."""
    text = "".join(c for c in text.lower() if c not in string.punctuation
                   and not (chinese and unicodedata.category(c).startswith("P")))
    words = re.sub(r"\b(a|an|the)\b", " ", text).split()
    return list("".join(words)) if chinese else words


def f1(answer, reference):
    both = (Counter(answer) & Counter(reference)).total()
    return 2 * both / (len(answer) + len(reference)) if answer and reference else float(answer == reference)


task = Task(
    name="qa",
    summary="the stretch of a text that answers a question",
    fields=("context", "question", "answer"),
    readers={".json": unfolding(json_array), ".jsonl": unfolding(json_lines)},
    usable=usable,
    askable=askable,
    head="span",
    tokenizer=partial(special.byte_pairs, alone=UNSPACED),
    examples=examples,
    predict=predict,
    metrics=metrics,
    metric_names=("exact_match", "f1"))
