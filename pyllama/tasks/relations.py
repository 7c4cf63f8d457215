"""The relation between two things that a text marks, <e1>so</e1> and <e2>so</e2>, as in SemEval-2010's task 8.

A relation that has a direction says it behind its name: Cause-Effect(e1,e2), or Cause-Effect(e2,e1).  Other is none.
"""
import re
from collections import Counter

from pyllama.tasks import classify, graph
from pyllama.tasks.relation_files import BACKWARDS, MARKS, OTHER, multi_head, semeval
from pyllama.tasks.rows import BadRow, Row, text_of
from pyllama.tasks.task import Task

VARIANT = "SemEval-2010 task 8, official: (9+1)-way with direction, macro over the true relations but Other"


def marked(text):
    """What is marked as e1 and as e2.  Raises BadRow unless each is there, once."""
    texts = []
    for name in ("e1", "e2"):
        between = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        inner = re.sub("</?e[12]>", "", between[0]) if between else ""
        if not inner.strip() or text.count(f"<{name}>") != 1 or text.count(f"</{name}>") != 1:
            raise BadRow(f"{text!r} does not mark one {name} as <{name}>so</{name}>")
        texts.append(inner)
    return texts


def askable(values):
    text = text_of(values, "text")
    marked(text)
    return {"text": text}


def usable(values):
    return {**askable(values), "relation": text_of(values, "relation").strip()}


def labeled(rows):
    """The rows as classify has them."""
    return [Row(row.place, {"text": row.values["text"], "label": row.values["relation"]}) for row in rows]


def undirected(relation):
    return re.sub(r"\((e1,e2|e2,e1)\)$", "", relation)


def metrics(answers, rows):
    """F1 as the official scorer takes it; accuracy and confusion matrix with Other and both directions.

    A relation is right with its direction alone, but both directions are one class: an answer in the wrong direction
    costs precision and recall.  The mean over classes has those that are true of some row, not Other.
    """
    truth = [row.values["relation"] for row in rows]
    right = Counter(undirected(a) for a, b in zip(answers, truth, strict=True) if a == b)
    predicted, true = Counter(map(undirected, answers)), Counter(map(undirected, truth))
    scores = [2 * right[name] / (predicted[name] + true[name]) for name in true if name != OTHER]
    shared = classify.metrics(answers, labeled(rows))
    return {"f1_macro": sum(scores) / max(1, len(scores)), "variant": VARIANT,
            **{name: shared[name] for name in ("accuracy", "rows", "labels", "confusion")}}


def triples(rows, answers):
    """(head, relation, tail) of each row whose answer is not Other: what is marked, in the relation's direction.

    White space, and what is no character to see, is one space, for a file of XML holds not all of it.
    """
    of_rows = []
    for row, answer in zip(rows, answers, strict=True):
        if answer != OTHER:
            first, second = (" ".join("".join(c if c.isprintable() else " " for c in text).split())
                             for text in marked(row.values["text"]))
            head, tail = (second, first) if answer.endswith(BACKWARDS) else (first, second)
            of_rows.append((head, undirected(answer), tail))
    return of_rows


def export(path):
    """(rows, answers) -> the triples as the bytes of such a file, also if there are none, and how many it holds.

    Raises UserError if there is no such file.
    """
    write = graph.writer(path)

    def written(rows, answers):
        of_rows = triples(rows, answers)
        content, description = write(of_rows)
        return content, description if of_rows else "no triple, for every answer is Other,"
    return written


task = Task(
    name="relations",
    summary="how two things that a text marks are related",
    fields=("text", "relation"),
    readers={".txt": semeval, ".conll": multi_head},
    usable=usable,
    askable=askable,
    head="classification",
    labels=lambda rows: classify.labels(labeled(rows)),
    markers=MARKS,
    examples=lambda rows, trained: classify.examples(labeled(rows), trained),
    predict=classify.predict,
    metrics=metrics,
    metric_names=("f1_macro", "accuracy", "confusion"),
    quick=True,
    export=export)
