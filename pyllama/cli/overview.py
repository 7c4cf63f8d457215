"""The commands models and tasks, which list the model families and the tasks."""
from rich.table import Table
from rich.text import Text

from pyllama import params, rng
from pyllama.cli.output import console
from pyllama.models import MODELS
from pyllama.models.config import Config, Dimensions
from pyllama.tasks import TASKS
from pyllama.tasks.finetune import Setup

SMALL_DATA = """With a few thousand rows, start from a trained model: FOLDER holds one from Hugging Face.
  pyllama finetune --task classify --model FOLDER --data reviews.csv --learning_rate 5e-5 --max_steps 200"""


def parameters(config) -> int:
    """The number of parameters of a configuration, without allocating them."""
    with rng.undrawn():
        return params.size(config.model.init(config))


def small(family: type[Config]):
    """The configuration with which `finetune --model FAMILY` starts from scratch, for the first task it supports."""
    heads = [task.head for task in TASKS.values() if task.head in family.HEADS]
    return family.small(Dimensions(vocab_size=Setup.vocab_size, context=Setup.max_length,
                                   head=(heads or list(family.HEADS))[0]))


def models() -> int:
    """List the model families: heads, tasks, number of parameters."""
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0),
                  caption=f"number of parameters: small, of `finetune --model` from scratch with {Setup.vocab_size:,} "
                          f"tokens; full, of a config.json without sizes")
    modules = set()
    for kind, (model, family) in MODELS.items():
        of_family = (family.__doc__ or "").partition("of a")[2].lstrip("n ")
        description = of_family if model in modules else model.__doc__
        modules.add(model)
        tasks = [name for name, task in TASKS.items() if task.head in family.HEADS]
        table.add_row(Text(kind, "bold"), "\n".join([
            first_sentence(description or ""),
            f"heads {', '.join(family.HEADS)}",
            f"tasks {', '.join(tasks) or 'none'}",
            f"parameters {parameters(small(family)):,} small, {parameters(family()):,} full"]))
    console.print(table, soft_wrap=False)
    return 0


def tasks() -> int:
    """List the tasks: fields of a row, models, metrics."""
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0),
                  caption="fields: the answer is the last; those in parentheses are optional")
    for name, task in TASKS.items():
        fields = (*task.fields[:-1], *(f"({name})" for name in task.optional_fields), task.fields[-1])
        table.add_row(Text(name, "bold"), "\n".join([
            task.summary,
            f"fields {', '.join(fields)}",
            f"models {', '.join(task.models())}",
            f"metrics {', '.join(task.metric_names)}"]))
    console.print(table, soft_wrap=False)
    console.print(SMALL_DATA)
    return 0


def first_sentence(text: str) -> str:
    """The first sentence of a module's docstring, without the remark that all models share."""
    return " ".join(text.split()).partition(". ")[0].replace(", forward and backward side by side", "").rstrip(".")
