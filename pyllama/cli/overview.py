"""The commands models and tasks: what there is, as the tables of models and tasks have it."""
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from pyllama import params, rng
from pyllama.cli.display import console
from pyllama.errors import UserError
from pyllama.pretrained import MODELS
from pyllama.tasks import TASKS, scratch
from pyllama.tasks.finetune import Setup


def parameters(config) -> int:
    """How many numbers a model of this configuration learns; exact, and without making them."""
    with rng.undrawn():
        return sum(a.size for _, a in params.leaves(config.model.init(config)))


def small(kind: str):
    """The configuration that `finetune --model KIND` begins with, or None."""
    head = next((task.heads[kind] for task in TASKS.values() if kind in task.heads), "lm")
    try:
        return scratch.configuration(kind, Setup.vocab_size, Setup.max_length, head, 0.1)
    except UserError:
        return None


def models() -> int:
    """The types of model: what they are, their heads, the tasks they can be trained on, their parameters."""
    table = Table("model", "heads", "tasks", box=SIMPLE, padding=(0, 1, 1, 1),
                  caption=f"parameters: small, as `finetune --model` begins from scratch with {Setup.vocab_size:,} "
                          f"tokens; full, as the configuration is where a config.json says nothing")
    for name in ("small", "full"):
        table.add_column(name, justify="right")
    keep_whole(table, 1, 2, 3, 4)
    for kind, (model, configuration) in MODELS.items():
        config = small(kind)
        heads = "\n".join(configuration.HEADS or ["lm"])
        table.add_row(Text.assemble((kind, "bold"), f"\n{first_sentence(model.__doc__ or '')}"), heads,
                      "\n".join(name for name, task in TASKS.items() if kind in task.heads) or "none",
                      f"{parameters(config):,}" if config else "", f"{parameters(configuration()):,}")
    console.print(table, soft_wrap=False)
    return 0


def tasks() -> int:
    """The tasks: what they do, the fields of a row, the models that can do them, how they are measured."""
    table = Table("task", "answers with", "fields", "models", "measures", box=SIMPLE, padding=(0, 1, 1, 1),
                  caption="fields: the answer last; those in parentheses may be absent")
    keep_whole(table, 0, 2, 3, 4)
    for name, task in TASKS.items():
        fields = (*task.fields[:-1], *(f"({name})" for name in task.also), task.fields[-1])
        table.add_row(name, task.about, "\n".join(fields), "\n".join(task.heads), "\n".join(task.measures))
    console.print(table, soft_wrap=False)
    return 0


def keep_whole(table: Table, *columns: int) -> None:
    """Names are not cut, however narrow the terminal."""
    for i in columns:
        table.columns[i].no_wrap = True


def first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].replace(", forward and backward side by side", "").rstrip(".")
