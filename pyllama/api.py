"""The functions of `import pyllama`: create or load a model, train it, generate and predict with it.

The functions that train are generators of records.  Each step runs when its record is requested, so the loop over the
records may print, plot or break.  They train the model in place.
"""
import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pyllama import params, pretrained
from pyllama.errors import UserError, check_options, with_article
from pyllama.generation import SearchConfig
from pyllama.models import MODELS
from pyllama.models.adapters import merged
from pyllama.models.config import Dimensions
from pyllama.pretrained import Model, check_dtype, load
from pyllama.quantization import EncodedArray
from pyllama.tasks import finetune as tuning
from pyllama.tasks.distill import resume_rows, resume_text
from pyllama.tasks.finetune import Setup
from pyllama.tasks.readable import readable
from pyllama.tasks.rows import Source
from pyllama.tasks.task import learned_limit, rows_of
from pyllama.text import special
from pyllama.text.corpus import Sources
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import objectives, text_run
from pyllama.training.adapting import Adapting
from pyllama.training.loop import Record, Settings
from pyllama.training.run import Plan, RunPolicy, new_run, run, saved_run
from pyllama.training.text_run import Text

__all__ = ["Model", "create", "finetune", "generate", "load", "predict", "resume", "train"]

# Field names that work for all families that have them, and the dimensions they set.
SHARED = {"hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads",
          "intermediate_size": "hidden", "dropout": "dropout"}


def create(family: str, data: Sources | Tokenizer, *, tokenizer: str = "char", vocab_size: int = 4096,
           max_position_embeddings: int = 128, head: str | None = None, seed: int = 0, dtype: str = "float32",
           **fields: Any) -> Model:
    """Create a model with random weights.

    family                     "llama", "mistral", "gpt2", "bert", "bart", "lstm", ...: see pyllama.models.MODELS
    data                       text to learn the tokenizer from (files, folders, patterns: see text.corpus.documents; of
                               a record every text), or a Tokenizer
    tokenizer                  "char", "byte", "bpe" with vocab_size tokens, or the path of a tokenizer.json
    max_position_embeddings    context length in tokens; an lstm has no limit
    head                       a head of the family; None: the one that trains on plain text
    seed                       seed of the weights
    dtype                      "float32" or "float64"; a model of float32 can train in bfloat16: see Settings
    fields                     other fields of the family's configuration, under the names of its config.json; for every
                               family also hidden_size, num_hidden_layers and dropout, and for all but "lstm"
                               num_attention_heads and intermediate_size.  Default: 2 layers (an lstm: 1) of width 128
                               with 4 heads, no dropout

    Raises UserError for an unknown family, head, field or dtype, and if the data cannot be read.

    >>> import pyllama
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> model.config.vocab_size == model.tokenizer.vocab_size
    True
    """
    if family not in MODELS:
        raise UserError(f"there is no family {family!r}; the families are {', '.join(MODELS)}")
    config_class = MODELS[family].config
    head = head or next(iter(config_class.LEARNS or config_class.HEADS))
    if head not in config_class.HEADS:
        raise UserError(f"{with_article(family)} has no head {head!r}; it has {', '.join(config_class.HEADS)}")
    check_dtype(dtype, "float32", "float64")
    absent = {name for name, dimension in SHARED.items() if dimension in config_class.UNUSED}
    shared = {name: value for name, value in fields.items() if name in SHARED.keys() - absent}
    own = {name: value for name, value in fields.items() if name not in shared}
    if unknown := sorted(own.keys() - config_class.names()):
        known = sorted(config_class.names() | SHARED.keys() - absent)
        raise UserError(f"{with_article(family)} has no field {unknown[0]!r}; it has {', '.join(known)}")
    if not isinstance(data, Tokenizer):
        learns = config_class.LEARNS.get(head)
        data = text_run.make_tokenizer(Text(sources(data), tokenizer=tokenizer, vocab_size=vocab_size, field=""),
                                       with_mask=learns is not None and objectives.needs_mask(learns))
    shape = Dimensions(vocab_size=data.vocab_size, context=max_position_embeddings, head=head, **special.ids_of(data),
                       **{"dropout": 0.0, **{SHARED[name]: value for name, value in shared.items()}})
    config = replace(config_class.small(shape), **own)
    return Model(config, config.model.init(config, seed, dtype), data)


def train(model: Model, data: Sources, settings: Settings | None = None, *, validation: float = 0.1,
          field: str = "text", out_dir: str | Path | None = None, policy: RunPolicy | None = None,
          adapting: Adapting | None = None) -> Iterator[Record]:
    """Train the model on text, in place.

    Yields a record after each step, with the fields step, loss (nats per token), grad_norm, lr, tokens, seconds and
    evaluation.  The evaluation is None except every policy.eval_steps steps and after the last step.

    data          files, folders, patterns: see text.corpus.documents; or a .bin of tokens
    settings      None: Settings(), which trains for 1,000 steps; its dtype is replaced by the model's, unless it is
                  "bfloat16": then a float32 model is trained in bfloat16 and stays float32
    validation    share of the text held out for evaluations, its last part
    field         field of a .jsonl file that holds the text
    out_dir       folder of the run, with checkpoints and log as in `pyllama train`, for resume(); None: save nothing
    policy        when to evaluate, save and stop, a pyllama.training.run.RunPolicy, such as RunPolicy(eval_steps=100);
                  None: RunPolicy()
    adapting      adapters to train in place of the model's parameters, such as Adapting(lora=("q_proj", "v_proj")),
                  which are merged into the model after the last step; None: none

    Warns of dropout rates of config.json that are not applied.  Raises UserError if the model has no tokenizer or does
    not train on text, if the text cannot be read, or if the loss is not finite.

    >>> import pyllama
    >>> model = pyllama.create("gpt2", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> settings = pyllama.Settings(max_steps=2, batch_size=2, block_size=8, warmup_steps=0)
    >>> [record.step for record in pyllama.train(model, "python-docs", settings, validation=0.001)]
    [1, 2]
    """
    folder = Path(out_dir) if out_dir else None
    warn(model.config.training_notes())
    text = Text(sources(data), field=field, validation=validation)
    # Without a run folder the tokens stay readable when the name of their open file is gone: so nothing is left behind,
    # even by a generator that is never finished.
    with new_run(folder, "pyllama.resume") as lock:
        with tempfile.TemporaryDirectory() as scratch:
            plan = text_run.begin(folder, model.config, model.require_tokenizer(), text, of_dtype(model, settings),
                                  policy or RunPolicy(), params=model.params,
                                  tokens_in=None if folder else Path(scratch), lock=lock,
                                  adapting=adapting, base=model.path)
        yield from run_in_place(model, plan)


def resume(path: str | Path, max_steps: int | None = None) -> Iterator[Record]:
    """Continue a run from its latest checkpoint, bit for bit as if it had never stopped.  Yields records as train().

    path         folder of a run of train(), finetune() or the command line; load(path) loads the model afterwards
    max_steps    new number of steps, to train longer

    Warns if the latest checkpoint is damaged and an older one is used.  Raises UserError if there is no run, or if it
    is already past max_steps.

    >>> import pyllama
    >>> list(pyllama.resume("runs/that-is-not-there"))
    Traceback (most recent call last):
    pyllama.errors.UserError: runs/that-is-not-there holds no checkpoint; give a run folder, one of its checkpoints, \
or a folder with config.json and model.safetensors
    """
    folder = Path(path)
    with saved_run(folder, max_steps) as saved:
        warn((*saved.notes, *pretrained.reading_notes(saved.checkpoint)))
        config = pretrained.config_of(saved.checkpoint)
        if "task" in saved.about:
            plan = resume_rows(tuning.resume(folder, saved)).plan
        else:
            base = pretrained.base_params(saved.checkpoint, config, saved.settings.master_dtype)
            plan = resume_text(text_run.resume(folder, saved, config, base=base))
        warn(plan.notes)
        yield from run(*plan)


def finetune(model: Model, data: str | Path, task: str, settings: Settings | None = None, *,
             fields: Sequence[str] = (), dev: float = 0.1, max_length: int = 128, epochs: int | None = None,
             class_weights: Literal["none", "balanced"] = "none", out_dir: str | Path | None = None,
             policy: RunPolicy | None = None, adapting: Adapting | None = None) -> Iterator[Record]:
    """Train the model on a task, in place.  The model gets the task's head.  Yields records as train().

    data             a .jsonl, .json, .csv or .tsv file of rows
    task             "classify", "qa", "translate", ...: see pyllama.tasks.TASKS
    settings         None: Settings(); its dtype has the same meaning as in train()
    fields           fields to read, in the task's order; none: the task's names, such as text and label
    dev              share of the rows held out for evaluations
    max_length       maximum tokens of a text; longer ones are truncated
    epochs           passes over the rows, instead of settings.max_steps
    class_weights    "balanced": every class has the same total weight
    out_dir          as in train(); load(out_dir) loads the latest weights, predict(out_dir, ...) uses the best
    policy           as in train()
    adapting         as in train(); the task's head is trained whole

    Raises UserError if there is no such task, the model cannot have its head, or a row is invalid.

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
    folder = Path(out_dir) if out_dir else None
    with new_run(folder, "pyllama.resume") as lock:
        task_run = tuning.begin(folder, task, Source(Path(data), tuple(fields)), setup, of_dtype(model, settings),
                                policy or RunPolicy(), SearchConfig(), model, lock, adapting)
        model.notes, model.tokenizer = task_run.notes, task_run.tokenizer
        yield from run_in_place(model, task_run.plan)


def generate(model: Model | str | Path, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
    """Continue the prompt with a model, or with the one at a path; see Model.generate.

    Warns of the notes on how the model at a path was loaded.

    >>> import pyllama
    >>> model = pyllama.create("llama", "python-docs", hidden_size=8, num_hidden_layers=1)
    >>> text = pyllama.generate(model, "The for statement", max_new_tokens=3)
    >>> text.startswith("The for statement"), len(text)
    (True, 20)
    """
    if not isinstance(model, Model):
        model = load(model)
        warn(model.notes)
    return model.generate(prompt, **options)


def predict(model: Model | str | Path, inputs: str | dict | Sequence[str | dict], **options: Any) -> Any:
    """Answer inputs with a model that was trained on a task: one answer for one input, a list for a list.

    model      a Model, or the path of a run of finetune() or the command line, whose best checkpoint is used
    inputs     a text, if the task reads one field, or a row: a dict of the task's fields, without the answer
    options    fields of pyllama.generation.SearchConfig, for tasks that generate text: num_beams, max_new_tokens,
               length_penalty, early_stopping

    An answer is a text: the class, the span, or the generated text; in tagging, a list of entities, dicts with start,
    end, text, label and score.  A model that another program trained on numbers, or on several labels at once, answers
    with a number or a list.  Warns of the notes on how the model at a path was loaded, and on inputs that are not
    answered.  Raises UserError if the model was not trained on a task, or an input or option is invalid.

    >>> import pyllama
    >>> model = pyllama.create("lstm", "python-docs", hidden_size=8)
    >>> pyllama.predict(model, "a fine film")
    Traceback (most recent call last):
    pyllama.errors.UserError: the model was not trained on a task; fine-tune it on one first
    """
    notes: Iterable[str] = ()
    if isinstance(model, Model):
        trained = tuning.trained(model.config, model.params, model.require_tokenizer())
        task = tuning.task_of_config(model.config.to_dict())
        assert task                                         # trained() raises an error if there is none
    else:
        task, trained, notes = tuning.load(Path(model))
    single = isinstance(inputs, str | dict)
    rows = rows_of(task, [inputs] if isinstance(inputs, str | dict) else inputs)
    search = with_options(SearchConfig, options)
    if not rows:
        return []
    rows, _ = readable(task, rows, trained, answers=False, in_file=False)
    warn((*notes, *task.truncated(rows, trained, learned_limit(trained)), *task.notes(rows, trained, search)))
    answers = [*map(task.shown, task.predict(rows, trained, search))]
    return answers[0] if single else answers


def sources(data: Sources) -> tuple[str, ...]:
    """The sources as a tuple of strings, as text.corpus.documents takes them."""
    return (str(data),) if isinstance(data, str | Path) else tuple(map(str, data))


def of_dtype(model: Model, settings: Settings | None) -> Settings:
    """The settings with the model's dtype, which a resume must have too.

    A float32 model may train in bfloat16.  Raises UserError if a float64 model should.
    """
    settings = settings or Settings()
    plain = (a.dtype.name for _, a in params.leaves(model.params) if not isinstance(a, EncodedArray))
    dtype: Any = next(plain, "float32")
    if settings.dtype != "bfloat16":
        return replace(settings, dtype=dtype)
    if dtype != settings.master_dtype:
        raise UserError(f"dtype is 'bfloat16', which trains weights of float32, but the model's are {dtype}; load or "
                        f"create the model in float32")
    return settings


def with_options(settings: type, options: dict[str, Any]) -> Any:
    """The dataclass with these fields.  Raises UserError if it does not have one of them, or a value is invalid."""
    check_options(options, settings)
    return settings(**options)


def warn(notes: Iterable[str]) -> None:
    """Warn of each note, in the caller of the function that calls this."""
    for note in notes:
        warnings.warn(note, stacklevel=3)


def run_in_place(model: Model, plan: Plan) -> Iterator[Record]:
    """Run the plan.  The model shares its weights from the first step on."""
    model.config, model.params = plan.state.config, plan.state.tree
    model.adapters, model.base, model.path = {}, None, None         # those are of the weights as they were
    warn(plan.notes)
    try:
        with contextlib.closing(run(*plan)) as records:
            for record in records:
                model.config = plan.state.config            # an evaluation may have calibrated it
                yield record
    finally:
        model.params = merged(model.params, model.config)
