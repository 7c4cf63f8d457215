"""The commands models and tasks, which list the tables of models and tasks."""
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from pyllama import params, rng
from pyllama.cli.display import console
from pyllama.models import MODELS
from pyllama.models.config import Config, Dimensions
from pyllama.tasks import TASKS
from pyllama.tasks.finetune import Setup

SMALL_DATA = """With a few thousand rows, start from a trained model: FOLDER holds one from Hugging Face.
  pyllama finetune --task classify --model FOLDER --data reviews.csv --learning_rate 5e-5 --max_steps 200"""


def parameters(config) -> int:
    """How many numbers a model of this configuration learns; exact, and without making them."""
    with rng.undrawn():
        return sum(a.size for _, a in params.leaves(config.model.init(config)))


def small(family: type[Config]):
    """The configuration that `finetune --model` begins with, for the first task that the family can do."""
    heads = [task.head for task in TASKS.values() if task.head in family.HEADS]
    return family.small(Dimensions(vocab_size=Setup.vocab_size, context=Setup.max_length,
                                   head=(heads or list(family.HEADS))[0]))


def models() -> int:
    """The types of model: what they are, their heads, the tasks they can be trained on, their parameters."""
    table = Table("model", "heads", "tasks", box=SIMPLE, padding=(0, 1, 1, 1),
                  caption=f"parameters: small, as `finetune --model` begins from scratch with {Setup.vocab_size:,} "
                          f"tokens; full, as a config.json without numbers says")
    for name in ("small", "full"):
        table.add_column(name, justify="right")
    keep_whole(table, 1, 2, 3, 4)
    for kind, (model, family) in MODELS.items():
        table.add_row(Text.assemble((kind, "bold"), f"\n{first_sentence(model.__doc__ or '')}"),
                      "\n".join(family.HEADS),
                      "\n".join(name for name, task in TASKS.items() if task.head in family.HEADS) or "none",
                      f"{parameters(small(family)):,}", f"{parameters(family()):,}")
    console.print(table, soft_wrap=False)
    return 0


def tasks() -> int:
    """The tasks: what they do, the fields of a row, the models that can do them, how they are measured."""
    table = Table("task", "answers with", "fields", "models", "measures", box=SIMPLE, padding=(0, 1, 1, 1),
                  caption="fields: the answer last; those in parentheses may be absent")
    keep_whole(table, 0, 2, 3, 4)
    for name, task in TASKS.items():
        fields = (*task.fields[:-1], *(f"({name})" for name in task.optional_fields), task.fields[-1])
        table.add_row(name, task.summary, "\n".join(fields), "\n".join(task.models()), "\n".join(task.metric_names))
    console.print(table, soft_wrap=False)
    console.print(SMALL_DATA)
    return 0


def keep_whole(table: Table, *columns: int) -> None:
    """Names are not cut, however narrow the terminal."""
    for i in columns:
        table.columns[i].no_wrap = True


def first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].replace(", forward and backward side by side", "").rstrip(".")
