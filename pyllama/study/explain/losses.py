"""The loss of each target of a recorded step: a token, a class or a number; and the scores of the classes."""
import numpy as np

from pyllama.ops import cross_entropy
from pyllama.ops.softmax import log_sum_exp
from pyllama.study.explain.cells import block, number, numbers
from pyllama.study.explain.formulas import double
from pyllama.study.explain.recording import Call, Recording
from pyllama.study.explain.subject import Subject
from pyllama.study.spelling import spelled
from pyllama.training.examples import IGNORE

MOST = 64                                       # rows and columns of the table of scores


def token_losses(subject: Subject, recording: Recording) -> list[dict]:
    """A row for each target: what it belongs to (None if it stands for the whole text), the target, its loss and
    probability, and the most likely one.  Of a number the score is the most likely one, without a probability."""
    rows = [row for call in recording.calls for row in losses_of(call)]
    labels = subject.inputs["labels"]
    if not rows:
        score = recording.calls[recording.order[0]].outputs[0].item()
        return [{"of": None, "target": str(number(labels.item())), "loss": number(recording.loss),
                 "probability": None, "best": str(number(score))}]
    belongs = owners(subject, len(rows))
    return [{"of": of, "target": named(subject, target), "loss": number(loss), "probability": number(probability),
             "best": named(subject, best)}
            for of, (target, loss, probability, best) in zip(belongs, rows, strict=True)]


def owners(subject: Subject, count: int) -> list[str | None]:
    """What each target belongs to: the token before it, the token that it is the tag of, or the end of a span."""
    ids, labels, config = subject.inputs["ids"][0], subject.inputs["labels"][0], subject.state.config
    if config.learns == "next token":
        return [token(subject, i) for i in ids[:-1][labels[1:] != IGNORE]]
    if config.head == "tagging":
        return [token(subject, i) for i in ids[labels != IGNORE]]
    return ["first", "last"] if config.head == "span" else [None] * count


def losses_of(call: Call) -> list[tuple[int, float, float, int]]:
    """(target, loss, probability, most likely id) of each row of a cross-entropy that is not ignored."""
    if call.op.name not in ("cross_entropy", "linear_cross_entropy"):
        return []
    *arrays, t = call.inputs
    z = double(arrays[0]) @ double(arrays[1]).T if len(arrays) == 2 else double(arrays[0])
    options = {name: value for name, value in call.options.items() if name != "chunk"} | {"count": 1}
    kept = np.flatnonzero(t != options.get("ignore_index", IGNORE))
    log_p = z - log_sum_exp(z)
    return [(int(t[n]), float(cross_entropy.forward(z[n:n + 1], t[n:n + 1], **options)[0]),
             float(np.exp(log_p[n, t[n]])), int(z[n].argmax())) for n in kept]


def classes(subject: Subject, recording: Recording) -> dict | None:
    """The scores z of a head with classes, or of the tokens that may begin or end a span, with their probabilities and
    ∂loss/∂z = p - [class is the target]: a block with the largest gradients.  None: there is none."""
    call = next((call for call in recording.calls if call.op.name == "cross_entropy"), None)
    if call is None or not (subject.classes or subject.state.config.head == "span"):
        return None
    z, t = map(np.asarray, call.inputs[:2])
    kept = np.flatnonzero(t != IGNORE)
    z, dz = double(z)[kept], double(call.grads[0])[kept]
    shown = block(dz, MOST)
    of = owners(subject, len(kept))
    return {"rows": [of[n] for n in shown.rows], "columns": [named(subject, j) for j in shown.columns],
            "targets": [named(subject, t[kept[n]]) for n in shown.rows], "count": z.shape[1],
            "z": numbers(shown.of(z)), "p": numbers(shown.of(np.exp(z - log_sum_exp(z)))),
            "dz": numbers(shown.of(dz))}


def named(subject: Subject, target: int) -> str:
    """The name of a class, the token at a place of the text, or the token of this id."""
    if subject.classes:
        return subject.classes[target]
    if subject.state.config.head == "span":
        return f"{target} {token(subject, subject.inputs['ids'][0, target])}"
    return token(subject, target)


def token(subject: Subject, i: int) -> str:
    """A token as text: see spelled()."""
    return spelled(subject.tokenizer, i)
