"""Triples from raw texts: sentences, their entities, and the relation of every two entities of a sentence.

    document -> sentences -> entities (the task tag) -> pairs, marked as <e1> and <e2> -> relations -> triples
"""
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple

from pyllama.errors import UserError
from pyllama.tasks import classify, relations, tag
from pyllama.tasks.graph import Triple
from pyllama.tasks.relation_files import BACKWARDS, MARKS, OTHER
from pyllama.tasks.rows import Row
from pyllama.tasks.task import Task, Trained

AT_ONCE = 64                                                # documents, and pairs, that are answered together
NEXT = 20                                                   # entities after one that it is paired with, in a sentence
# The end of a sentence: a full stop with its closing quotes, before white space, or of Chinese; an empty line
END = re.compile("[.!?…]+[\"'”’»)\\]]*(?=\\s|\\Z)|[。！？]+[”’」』）]*|\\n\\s*\\n")
ABBREVIATIONS = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "no", "fig", "gen", "col", "sen",
                           "rep", "gov", "inc", "ltd", "co", "corp", "e.g", "i.e"])


class Reader(NamedTuple):
    """The two models that read a text."""
    tagger: Trained
    relations: Trained


def reader(tagger: tuple[Task, Trained, Any], relation: tuple[Task, Trained, Any]) -> Reader:
    """The Reader of two models, as finetune.load() gives them.

    Raises UserError if one was trained on another task, or the tagger does not mark entities.
    """
    for (task, _, _), wanted, role in ((tagger, tag.task, "tagger"), (relation, relations.task, "relations")):
        if task.name != wanted.name:
            raise UserError(f"{role} was trained on the task {task.name}; give a run of finetune with task "
                            f"{wanted.name}")
    names = tag.tag_names(tagger[1].config)
    if not all(tag.SPAN_TAG.fullmatch(name) for name in names):
        raise UserError(f"tagger does not mark entities: it has the tags {', '.join(names[:5])}; give one whose tags "
                        f"are O, B-NAME and I-NAME")
    return Reader(tagger[1], relation[1])


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """(first, past) character of each sentence, without white space around it.

    A full stop after an abbreviation or a single capital, or before a small letter, does not end one.

    >>> from pyllama.tasks.extract import sentences
    >>> text = "Mr. J. Lee left.  He is in Maine!"
    >>> [text[first:past] for first, past in sentences(text)]
    ['Mr. J. Lee left.', 'He is in Maine!']
    """
    first = 0
    for past in [*(end.end() for end in END.finditer(text) if ends(text, end)), len(text)]:
        inner = text[first:past].strip()
        if inner:
            begin = text.index(inner, first)
            yield begin, begin + len(inner)
        first = past


def ends(text: str, end: re.Match) -> bool:
    """Does a match of END end a sentence?"""
    if end[0] != ".":
        return True
    word = re.search(r"[^\s(\[\"']*\Z", text[:end.start()][-20:])
    before = word[0] if word else ""
    after = text[end.end():].lstrip()[:1]
    return not (before.lower() in ABBREVIATIONS or (len(before) == 1 and before.isupper()) or after.islower())


def without_marks(text: str) -> str:
    """The text with (e1) where it spells <e1>, a mark of the relations."""
    return re.sub("|".join(MARKS), lambda mark: f"({mark[0][1:-1]})", text)


class Found(NamedTuple):
    """The result of extracted() for some documents."""
    triples: list[Triple]
    counts: Counter                                         # of documents, sentences, entities and pairs, and of
                                                            # pairs that are too far apart for the model


def extracted(documents: Iterable[tuple[str, str]], models: Reader, min_score: float = 0.0) -> Iterator[Found]:
    """The triples in every AT_ONCE documents, which are (name, text).  An entity is paired with the NEXT ones of its
    sentence, because all pairs of a long list would be too many.

    min_score    leave out relations whose probability is lower
    """
    remaining = iter(documents)
    while batch := list(islice(remaining, AT_ONCE)):
        texts = [(name, without_marks(text)) for name, text in batch]
        rows = [Row(name, tag.unpacked({"text": text[first:past]})["row"])
                for name, text in texts for first, past in sentences(text)]
        tagged = list(zip(rows, tag.predict(rows, models.tagger) if rows else [], strict=True))
        pairs = ((row, one, other) for row, answer in tagged for i, one in enumerate(answer.entities)
                 for other in answer.entities[i + 1:i + 1 + NEXT])
        counts = Counter(documents=len(batch), sentences=len(rows),
                         entities=sum(len(answer.entities) for _, answer in tagged))
        triples: list[Triple] = []
        while some := list(islice(pairs, AT_ONCE)):
            triples += of_pairs(some, models.relations, min_score, counts)
        yield Found(triples, counts)


def of_pairs(pairs, model: Trained, min_score: float, counts: Counter) -> list[Triple]:
    """The triples of pairs (row, first entity, second entity); counts is added to."""
    texts = fitting(pairs, model)
    counts.update({"pairs": len(pairs), "too far apart": texts.count(None)})
    readable = [pair for pair, text in zip(pairs, texts, strict=True) if text is not None]
    rows = [Row("", {"text": text}) for text in texts if text is not None]
    if not rows:
        return []
    found = []
    for marked, answer, detail, (row, *entities) in zip(rows, *relations.task.answered(rows, model, None), readable,
                                                        strict=True):
        if answer != OTHER and detail["probability"] >= min_score:
            ((head, relation, tail),) = relations.triples([marked], [answer])
            if not (head and tail):                         # of unprintable characters alone
                continue
            one, other = entities[::-1] if answer.endswith(BACKWARDS) else entities
            found.append(Triple(head, relation, tail, one["label"], other["label"], round(detail["probability"], 4),
                                row.place, " ".join(row.values["text"].split())))
    return found


def fitting(pairs, model: Trained) -> list[str | None]:
    """The text of each pair with its marks.  If the model would not read all of it, only the part from one entity to
    the other; None if that is too long as well."""
    def as_far_as_read(texts):
        lengths = classify.lengths([Row("", {"text": text}) for text in texts], model)
        return [text if length <= model.max_length else None for text, length in zip(texts, lengths, strict=True)]

    whole = as_far_as_read([mark(row.values["text"], one, other) for row, one, other in pairs])
    parts = as_far_as_read([mark(row.values["text"], one, other, one["start"], other["end"])
                            for row, one, other in pairs])
    return [part if text is None else text for text, part in zip(whole, parts, strict=True)]


def mark(text: str, first: dict, second: dict, begin: int = 0, end: int | None = None) -> str:
    """text[begin:end] with the marks of the relations around two entities."""
    end = len(text) if end is None else end
    cuts = [begin, first["start"], first["end"], second["start"], second["end"], end]
    before, one, between, other, after = (text[a:b] for a, b in pairwise(cuts))
    return f"{before}{MARKS[0]}{one}{MARKS[1]}{between}{MARKS[2]}{other}{MARKS[3]}{after}"
