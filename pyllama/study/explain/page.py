"""The page: one HTML file with the document, the style and the program in it, which needs nothing else."""
import json
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from pyllama.errors import UserError
from pyllama.study.explain.document import document, rooms
from pyllama.study.explain.nudges import nudges, weights
from pyllama.study.explain.recording import record
from pyllama.study.explain.rows import Given
from pyllama.study.explain.subject import load
from pyllama.study.explain.update import update

LIMIT = 5_000_000                               # bytes of a page
SCRIPTS = ("words.js", "page.js", "graph.js", "arrays.js", "sections.js", "batch.js")


def explained(path: Path, text: str, *, text_pair: str | None = None, label: str | None = None,
              target: str | None = None, step: int | None = None,
              nudge: tuple[str, ...] = (), tokenizer: Path | None = None,
              say: Callable[[str], object] = lambda note: None,
              show: Callable[[int, int], object] = lambda done, total: None) -> bytes:
    """The page of one training step of the model at `path`, whose batch is the text.

    text_pair, label, target    the other parts of a row, for a model that was trained on a task: see rows.Given
    step, tokenizer     see subject.load()
    nudge               weights to nudge besides those with the largest gradients, such as "lm_head.weight[3,5]"
    say                 takes notes for the user
    show                show(done, total) is called after each weight that was nudged

    Raises UserError if the model, the step, the text or a weight cannot be used.
    """
    subject = load(path, Given(text, text_pair, label, target), step, tokenizer)
    for note in subject.notes:
        say(note)
    recording = record(subject.loss, subject.state.tree)
    if not math.isfinite(recording.loss):
        raise UserError(f"the loss of this text is {recording.loss}, which no gradient explains; give another text, "
                        f"or an earlier step")
    chosen = weights(recording.grads, nudge)
    found = nudges(subject, chosen, show)
    made = update(subject, recording)
    frame = html("null")
    rest = {**document(subject, recording, made, found, 1, 1), "calls": []}
    for most, each in rooms(recording, LIMIT - len(frame) - len(as_json(rest))):
        page = html(as_json(document(subject, recording, made, found, most, each)))
        if len(page) <= LIMIT:
            return page
    raise UserError(f"the page of {len(recording.calls):,} calls would take more than {LIMIT // 10 ** 6} MB; give a "
                    f"smaller model or a shorter text")


def as_json(value) -> str:
    """JSON that may stand in HTML: "</" would end the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def html(data: str) -> bytes:
    """The page with this document."""
    folder = files(__package__)
    program = "\n".join(folder.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    parts = {"/*style*/": folder.joinpath("page.css").read_text("utf-8"), "/*program*/": program,
             "/*document*/": data}                          # last, because a text may have the other marks
    page = folder.joinpath("page.html").read_text("utf-8")
    for mark, part in parts.items():
        before, _, after = page.partition(mark)
        page = before + part + after
    return page.encode()
