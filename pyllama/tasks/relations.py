"""Relation classification: the relation between two marked entities, <e1>smoke</e1> and <e2>fire</e2>.

The labels are those of SemEval-2010 task 8.  A directed relation has its direction after its name, as in
Cause-Effect(e1,e2) or Cause-Effect(e2,e1); Other means no relation.
"""
import re
from collections import Counter

from pyllama.tasks import classify, graph
from pyllama.tasks.labels import notes
from pyllama.tasks.relation_files import BACKWARDS, MARKS, OTHER, multi_head, semeval
from pyllama.tasks.rows import BadRow, Row, text_of
from pyllama.tasks.task import Task

VARIANT = "SemEval-2010 task 8, official: (9+1)-way with direction, macro over the true relations but Other"


def marked(text):
    """The texts marked as e1 and e2.  Raises BadRow unless each is marked once."""
    texts = []
    for name in ("e1", "e2"):
        between = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        inner = re.sub("</?e[12]>", "", between[0]) if between else ""
        if not inner.strip() or text.count(f"<{name}>") != 1 or text.count(f"</{name}>") != 1:
            raise BadRow(f"{text!r} does not contain one marked entity <{name}>...</{name}>")
        texts.append(inner)
    return texts


def askable(values):
    """{text} of a row.  Raises BadRow."""
    text = text_of(values, "text")
    marked(text)
    return {"text": text}


def usable(values):
    """{text, relation} of a row.  Raises BadRow."""
    return {**askable(values), "relation": text_of(values, "relation").strip()}


def labeled(rows):
    """The rows with the fields of the task classify."""
    return [Row(row.place, {"text": row.values["text"], "label": row.values["relation"]}) for row in rows]


def undirected(relation):
    """The name of a relation without its direction."""
    return re.sub(r"\((e1,e2|e2,e1)\)$", "", relation)


def metrics(answers, rows):
    """Macro F1 as computed by the official scorer; accuracy and confusion matrix over all labels, Other and directions
    included.

    For F1 both directions are one class, but an answer is correct only with the right direction: the wrong one lowers
    precision and recall.  The mean is over the relations that occur in the rows, without Other.
    """
    truth = [row.values["relation"] for row in rows]
    correct = Counter(undirected(a) for a, b in zip(answers, truth, strict=True) if a == b)
    predicted, true = Counter(map(undirected, answers)), Counter(map(undirected, truth))
    scores = [2 * correct[name] / (predicted[name] + true[name]) for name in true if name != OTHER]
    shared = classify.metrics(answers, labeled(rows))
    return {"f1_macro": sum(scores) / max(1, len(scores)), "variant": VARIANT,
            **{name: shared[name] for name in ("accuracy", "rows", "labels", "confusion")}}


def triples(rows, answers):
    """(head, relation, tail) of each row whose answer is not Other: the marked texts, in the relation's direction.

    Runs of white space and unprintable characters become one space, because XML does not allow all of these.
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
    """A function of (rows, answers) that returns (the triples as the bytes of a file, their number in words).

    Raises UserError if the path's suffix is not supported, or the package that writes it is not installed.
    """
    write = graph.writer(path)

    def written(rows, answers):
        of_rows = triples(rows, answers)
        content, description = write(of_rows)
        return content, description if of_rows else "no triples, because every answer is Other,"
    return written


task = Task(
    name="relations",
    summary="the relation between two entities marked in a text",
    fields=("text", "relation"),
    readers={".txt": semeval, ".conll": multi_head},
    usable=usable,
    askable=askable,
    remarks=lambda rows: notes(row.values["relation"] for row in rows),
    head="classification",
    labels=lambda rows: classify.labels(labeled(rows)),
    markers=MARKS,
    examples=lambda rows, trained: classify.examples(labeled(rows), trained),
    lengths=classify.lengths,
    predict=classify.predict,
    detailed=classify.detailed,
    metrics=metrics,
    metric_names=("f1_macro", "accuracy", "confusion"),
    quick=True,
    export=export)
