"""Rows that a tokenizer can read: each text has tokens, and every character has one."""
from collections.abc import Sequence

from pyllama.errors import UserError, counted
from pyllama.tasks.rows import Row, left_out
from pyllama.tasks.task import Task, Trained


def readable(task: Task, rows: Sequence[Row], trained: Trained, bad_rows: str = "fatal",
             answers: bool = True, in_file: bool = True) -> tuple[list[Row], tuple[str, ...]]:
    """(rows, notes): the rows whose texts the tokenizer can read, and notes on the others.

    bad_rows   "skip": leave the others out; "fatal": raise UserError for the first
    in_file    do the rows come from a file, so that bad_rows is a cure?
    answers    do the rows have answers?  Those that the model writes must be readable, too

    Raises UserError if the tokenizer can read none of them.
    """
    names = task.fields if answers and task.writes else task.fields[:-1]
    good, bad = [], []
    for row in rows:
        problem = next(filter(None, (objection(trained, name, row.values.get(name)) for name in names)), "")
        if problem and bad_rows == "fatal":
            raise UserError(f"{row.place}: {problem}" + "; or set bad_rows to skip" * in_file)
        if problem:
            bad.append(f"{row.place}: {problem}")
        else:
            good.append(row)
    if bad and not good:
        raise UserError(f"the tokenizer can read none of {counted(len(bad), 'row')}, the first because {bad[0]}")
    return good, left_out(bad, len(rows))


def objection(trained: Trained, name: str, text: object) -> str | None:
    """Why the tokenizer cannot read the text in a field; None if it can."""
    if not isinstance(text, str):
        return None
    try:
        ids = trained.tokenizer.encode(text, allowed_special=trained.markers)
    except UserError as error:
        return f"{name!r} cannot be encoded: {error}"
    return None if len(ids) else f"{name!r} has no token, because the tokenizer removes all of {text!r}; fix it"
