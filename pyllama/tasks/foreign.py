"""The labels of rows that a model of another program is measured on."""
from collections.abc import Sequence

from pyllama.errors import UserError
from pyllama.tasks.columns import listed
from pyllama.tasks.rows import Row
from pyllama.tasks.scores import problem_of
from pyllama.tasks.task import Task, labels_of


def with_names(task: Task, rows: Sequence[Row], config) -> Sequence[Row]:
    """Rows whose labels are the names of the model's classes: a number is the class with this number.

    Raises UserError for another label.  Rows of other tasks, and of models that were trained here, are returned as they
    are.
    """
    if "task" in config.extra or task.name != "classify" or problem_of(config) != "single_label_classification":
        return rows
    names = labels_of(config)

    def name_of(row):
        label = row.values["label"]
        if label in names:
            return label
        if label.isdecimal() and int(label) < len(names):
            return names[int(label)]
        raise UserError(f"{row.place} has the label {label!r}, but the model has the classes {listed(names)}; give "
                        f"their names or their numbers")

    return [row._replace(values={**row.values, "label": name_of(row)}) for row in rows]
