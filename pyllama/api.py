"""What `import pyllama` offers: make a model or load one, train it, ask it.

A function that trains is a generator of records: each step is done when its record is asked for, so a loop over it may
print, plot or break.  It trains the model it is given, in place.
"""
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pyllama import pretrained
from pyllama.beam import SearchConfig
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.pretrained import Model, load
from pyllama.tasks import finetune as tuning
from pyllama.tasks.finetune import Setup
from pyllama.tasks.rows import Source
from pyllama.tasks.task import rows_of
from pyllama.text import special
from pyllama.text.corpus import Sources
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import objectives, text_run
from pyllama.training.loop import Record, Settings
from pyllama.training.run import Plan, RunPolicy, run, saved_run
from pyllama.training.text_run import Text

__all__ = ["Model", "create", "finetune", "generate", "load", "predict", "resume", "train"]

# Names that all families understand, and the dimensions they set.
SHARED = {"hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads",
          "intermediate_size": "hidden", "dropout": "dropout"}


def create(family: str, data: Sources | Tokenizer, *, tokenizer: str = "char", vocab_size: int = 4096,
           max_position_embeddings: int = 128, head: str | None = None, seed: int = 0, dtype: str = "float32",
           **fields: Any) -> Model:
    """A model from scratch, its weights drawn from the seed.

    family       "llama", "gpt2", "bert", "bart", "transformer" or "lstm"
    data         the text that its tokenizer learns from (files, folders, patterns: see text.corpus.documents), or a
                 Tokenizer
    tokenizer    "char", "byte", "bpe" with vocab_size tokens, or the path of a tokenizer.json
    head         what is on top; None: what the family learns from text with
    dtype        "float32" or "float64"
    fields       of the family's configuration, under the names of its config.json; hidden_size, num_hidden_layers,
                 num_attention_heads, intermediate_size and dropout for every family.  Unless given: 2 layers of width
                 128 with 4 heads, no dropout

    Raises UserError for a family, a head or a field that there is not, and if the data cannot be read.

    >>> import pyllama
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> model.config.vocab_size == model.tokenizer.vocab_size
    True
    """
    if family not in MODELS:
        raise UserError(f"there is no family {family!r}; there are {', '.join(MODELS)}")
    config_class = MODELS[family].config
    head = head or next(iter(config_class.LEARNS or config_class.HEADS))
    if head not in config_class.HEADS:
        raise UserError(f"a {family} has no head {head!r}; it has {', '.join(config_class.HEADS)}")
    if not isinstance(data, Tokenizer):
        learns = config_class.LEARNS.get(head)
        data = text_run.make_tokenizer(Text(sources(data), tokenizer=tokenizer, vocab_size=vocab_size),
                                       with_mask=learns is not None and objectives.needs_mask(learns))
    shape = Dimensions(vocab_size=data.vocab_size, context=max_position_embeddings, head=head, **special.ids_of(data),
                       **{"dropout": 0.0, **{SHARED[name]: value for name, value in fields.items() if name in SHARED}})
    special_fields = {name: value for name, value in fields.items() if name not in SHARED}
    if unknown := sorted(special_fields.keys() - config_class.names()):
        raise UserError(f"a {family} has no field {unknown[0]!r}; it has {', '.join(sorted(config_class.names()))}")
    config = replace(config_class.small(shape), **special_fields)
    return Model(config, config.model.init(config, seed, dtype), data)


def train(model: Model, data: Sources, settings: Settings | None = None, *, validation: float = 0.1,
          field: str = "text", out_dir: str | Path | None = None, policy: RunPolicy | None = None) -> Iterator[Record]:
    """Train the model on text, in place; yields a record a step: step, loss (nats per token), grad_norm, lr, tokens,
    seconds, and evaluation, which is None but at the steps that policy.eval_steps names and at the last.

    data          files, folders, patterns: see text.corpus.documents; or a .bin of tokens
    settings      None: Settings(), which trains for 1,000 steps
    validation    the share of the text that evaluations are made on, its last part
    field         the field of a .jsonl file that holds the text
    out_dir       None: nothing is saved; else the folder of a run, with checkpoints and log, as `pyllama train` makes
                  it: resume() goes on with it
    policy        when to evaluate, save and stop

    Raises UserError if the model has no tokenizer or does not learn from text, if the text cannot be used, or if the
    loss is not finite.

    >>> import pyllama
    >>> model = pyllama.create("gpt2", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> settings = pyllama.Settings(max_steps=2, batch_size=2, block_size=8, warmup_steps=0)
    >>> [record.step for record in pyllama.train(model, "python-docs", settings, validation=0.001)]
    [1, 2]
    """
    folder = new_folder(out_dir)
    with contextlib.ExitStack() as stack:
        tokens_in = None if folder else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        text = Text(sources(data), field=field, validation=validation)
        plan = text_run.begin(folder, model.config, model.require_tokenizer(), text, settings or Settings(),
                              policy or RunPolicy(), params=model.params, tokens_in=tokens_in)
        yield from run_in_place(model, plan)


def resume(path: str | Path, max_steps: int | None = None) -> Iterator[Record]:
    """Go on with a run from its latest checkpoint, bit for bit as if it had never stopped; yields records as train().

    path         the folder of a run, of train(), finetune() or the command line; load(path) reads the model afterwards
    max_steps    a new last step, to train longer

    Raises UserError if there is no run, or if it is past max_steps already.

    >>> import pyllama
    >>> list(pyllama.resume("runs/that-is-not-there"))
    Traceback (most recent call last):
    pyllama.errors.UserError: runs/that-is-not-there holds no checkpoint; give a run folder, one of its checkpoints, \
or a folder with config.json and model.safetensors
    """
    folder = Path(path)
    saved = saved_run(folder, max_steps)
    config = pretrained.config_of(saved.checkpoint)
    plan = tuning.resume(folder, saved).plan if "task" in saved.about else text_run.resume(folder, saved, config)
    yield from run(*plan)


def finetune(model: Model, data: str | Path, task: str, settings: Settings | None = None, *,
             fields: Sequence[str] = (), dev: float = 0.1, max_length: int = 128, epochs: int | None = None,
             class_weights: Literal["none", "balanced"] = "none", out_dir: str | Path | None = None,
             policy: RunPolicy | None = None) -> Iterator[Record]:
    """Train the model on a task, in place: it gets the task's head; yields records as train().

    data             a .jsonl, .json, .csv or .tsv file of rows
    task             "classify", "qa", "translate", ...: see pyllama.tasks.TASKS
    settings         None: Settings()
    fields           the fields to read, in the task's order; none: its usual names, such as text and label
    dev              the share of the rows that evaluations are made on
    max_length       tokens of a text; what is longer is cut
    epochs           how often to learn from each row, in place of settings.max_steps
    class_weights    "balanced": all classes count the same
    out_dir          as in train(); load(out_dir) reads the latest weights, predict(out_dir, ...) uses the best

    Raises UserError if there is no such task, the model cannot have its head, or a row cannot be used.

    >>> import pathlib, tempfile, pyllama
    >>> rows = pathlib.Path(tempfile.mkdtemp(), "reviews.csv")
    >>> _ = rows.write_text("text,label\\n" + "a fine film,good\\na dull film,bad\\n" * 10)
    >>> model = pyllama.create("lstm", rows, hidden_size=8)
    >>> settings = pyllama.Settings(max_steps=40, batch_size=6, learning_rate=1e-2, warmup_steps=0)
    >>> for record in pyllama.finetune(model, rows, "classify", settings): pass
    >>> pyllama.predict(model, ["a fine film", "a dull film"])
    ['good', 'bad']
    """
    setup = Setup(model="", dev=dev, max_length=max_length, epochs=epochs, class_weights=class_weights)
    job = tuning.begin(new_folder(out_dir), task, Source(Path(data), tuple(fields)), setup, settings or Settings(),
                       policy or RunPolicy(), SearchConfig(), model)
    model.notes = job.notes
    yield from run_in_place(model, job.plan)


def generate(model: Model | str | Path, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
    """What the model, or the one at this path, writes for the prompt: see Model.generate.

    >>> import pyllama
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> text = pyllama.generate(model, "The for statement", max_new_tokens=3)
    >>> text.startswith("The for statement"), len(text)
    (True, 20)
    """
    return opened(model).generate(prompt, **options)


def predict(model: Model | str | Path, inputs: str | dict | Sequence[str | dict], **options: Any) -> Any:
    """The answers of a model that was trained on a task: for one text or row an answer, for a list of them a list.

    model      a Model, or the path of a run of finetune() or of the command line: then its best checkpoint
    inputs     a text, where the task reads one field, or a row: a dict of the task's fields, without the answer
    options    of beam.SearchConfig, for tasks that write: num_beams, max_new_tokens, length_penalty, early_stopping

    Raises UserError if the model was not trained on a task, or an input is not what the task reads.

    >>> import pyllama
    >>> model = pyllama.create("lstm", "python-docs", hidden_size=8)
    >>> pyllama.predict(model, "a fine film")
    Traceback (most recent call last):
    pyllama.errors.UserError: the model was not trained on a task; train it with `pyllama finetune` first
    """
    if isinstance(model, Model):
        trained = tuning.trained(model.config, model.params, model.require_tokenizer())
        task = tuning.task_of(model.config.extra["task"]["name"])
    else:
        task, trained, _ = tuning.load(Path(model))
    single = isinstance(inputs, str | dict)
    rows = rows_of(task, [inputs] if isinstance(inputs, str | dict) else inputs)
    answers = task.predict(rows, trained, SearchConfig(**options))
    return answers[0] if single else answers


def sources(data: Sources) -> tuple[str, ...]:
    """The sources as text.corpus.documents takes them."""
    return (str(data),) if isinstance(data, str | Path) else tuple(map(str, data))


def new_folder(out_dir: str | Path | None) -> Path | None:
    """The folder of a new run.  Raises UserError if it holds one."""
    if out_dir is None:
        return None
    if (Path(out_dir) / "latest").exists():
        raise UserError(f"{out_dir} holds a run already; go on with it by pyllama.resume, or choose another out_dir")
    return Path(out_dir)


def opened(model: Model | str | Path) -> Model:
    return model if isinstance(model, Model) else load(model)


def run_in_place(model: Model, plan: Plan) -> Iterator[Record]:
    """Run the plan; the model has its weights from the first step on."""
    model.config, model.params = plan.state.config, plan.state.p
    yield from run(*plan)
