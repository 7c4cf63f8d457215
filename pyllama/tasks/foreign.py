"""The labels of rows that a model is measured on: the names of its classes, in any spelling of a number."""
from collections.abc import Sequence

from pyllama.errors import UserError
from pyllama.tasks.columns import listed
from pyllama.tasks.labels import shortest
from pyllama.tasks.rows import Row
from pyllama.tasks.scores import problem_of
from pyllama.tasks.task import Task, labels_of


def with_names(task: Task, rows: Sequence[Row], config) -> list[Row]:
    """Rows whose labels are the names of the model's classes.

    1.0 is the class 1, if there is none with the name 1.0.  For a model of another program, which may have other names
    than the rows, a number is the class with this number.

    Raises UserError for another label.  Rows of other tasks are returned as they are.
    """
    if task.name != "classify" or problem_of(config) != "single_label_classification":
        return list(rows)
    names = labels_of(config)
    by_value = {shortest(name): name for name in reversed(names)} | {name: name for name in names}
    numbered = {} if "task" in config.extra else {str(number): name for number, name in enumerate(names)}

    def name_of(row):
        label = row.values["label"]
        for known, spelling in ((by_value, label), (by_value, shortest(label)), (numbered, shortest(label))):
            if spelling in known:
                return known[spelling]
        cure = "give their names or their numbers" if numbered else "give their names"
        raise UserError(f"{row.place} has the label {label!r}, but the model has the classes {listed(names)}; "
                        f"{cure}")

    return [row._replace(values={**row.values, "label": name_of(row)}) for row in rows]
