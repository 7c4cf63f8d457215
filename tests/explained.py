"""Small models and runs, of every family on a text and on tasks, and what the backward explorer makes of them."""
import functools
import json

import numpy as np
import pytest

import pyllama
from pyllama import params, pretrained
from pyllama.models import MODELS
from pyllama.study.explain.document import document
from pyllama.study.explain.nudges import nudges, weights
from pyllama.study.explain.recording import record
from pyllama.study.explain.rows import Given
from pyllama.study.explain.subject import load
from pyllama.study.explain.update import update
from pyllama.tasks import TASKS, finetune
from pyllama.tasks.finetune import Setup
from pyllama.tasks.rows import Source
from pyllama.training.run import RunPolicy
from tests.shared import written

TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 40
SENTENCE = "the cat sat on the log"
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}

# Of each task two rows, as a file has them, and the first one as the explorer takes it
ROWS: dict[str, tuple[list[dict], Given]] = {
    "classify": ([{"text": "a fine film", "text_pair": "it is good", "label": "yes"},
                  {"text": "a dull film", "label": "no"}], Given("a fine film", "it is good", "yes")),
    "translate": ([{"source": "the cat", "target": "le chat noir"}, {"source": "a dog", "target": "un chien"}],
                  Given("the cat", target="le chat noir")),
    "g2p": ([{"source": "cat", "target": "K AE T"}, {"source": "dog", "target": "D AO G"}],
            Given("cat", target="K AE T")),
    "qa": ([{"context": "the cat sat on a mat", "question": "who sat", "answer": "the cat"},
            {"context": "a dog ran home", "question": "who ran", "answer": "a dog"}],
           Given("the cat sat on a mat", "who sat", target="the cat")),
    "summarize": ([{"document": "the cat sat there", "summary": "it sat"}, {"document": "a dog ran", "summary": "ran"}],
                  Given("the cat sat there", target="it sat")),
    "instruct": ([{"instruction": "plural", "input": "cat", "output": "cats"}, {"instruction": "say", "output": "hi"}],
                 Given("plural", "cat", target="cats")),
    "relations": ([{"text": "<e1>smoke</e1> of a <e2>fire</e2>", "relation": "Cause-Effect(e2,e1)"},
                   {"text": "a <e1>cat</e1> and <e2>I</e2>", "relation": "Other"}],
                  Given("<e1>smoke</e1> of a <e2>fire</e2>", label="Cause-Effect(e2,e1)")),
    "write": ([{"source": "she go home", "corrected": "she goes home"}, {"source": "he go", "corrected": "he goes"}],
              Given("she go home", target="she goes home")),
    "tag": ([{"tokens": ["Ann", "Lee", "saw", "Maine"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]},
             {"tokens": ["a", "cat", "sat"], "tags": ["O", "O", "O"]}],
            Given("Ann Lee saw Maine", label="B-PER I-PER O B-LOC")),
    "regress": ([{"text": "a fine film", "label": 2.5}, {"text": "a dull film", "label": -1}],
                Given("a fine film", label="2.5")),
}

OF_TEXT = [("text", name) for name, family in MODELS.items() if family.config.LEARNS]
# Each task with one family, and the first task of each head with every family that has the head
OF_HEAD = {task.head: task.name for task in reversed(TASKS.values())}
OF_TASKS = [(task.name, family) for task in TASKS.values()
            for family in task.models()[:None if OF_HEAD[task.head] == task.name else 1]]


every_model = pytest.mark.parametrize("case", [*OF_TEXT, *OF_TASKS], ids="-".join)
every_task = pytest.mark.parametrize("case", OF_TASKS, ids="-".join)


def small_run(folder, **options):
    """A run of four steps in float64, with the checkpoints of steps 2 and 4."""
    text = written(folder / "text.txt", TEXT)
    model = pyllama.create("llama", text, intermediate_size=12, dtype="float64", **SMALL)
    settings = pyllama.Settings(max_steps=4, batch_size=2, block_size=16, warmup_steps=0, learning_rate=1e-2, shards=1,
                                **options)
    policy = RunPolicy(eval_steps=4, save_steps=2)
    for _ in pyllama.train(model, text, settings, out_dir=folder / "tiny", policy=policy):
        pass
    return folder / "tiny"


def rows_file(folder, task):
    """A file of ten rows of the task."""
    rows, _ = ROWS[task]
    return written(folder / "rows.jsonl", "\n".join(map(json.dumps, rows * 5)))


def small_model(task, family, dtype="float32"):
    """A random model of the family with the task's head, and a tokenizer of its rows."""
    rows, _ = ROWS[task]
    texts = [json.dumps(row) for row in rows]
    shape = {name: size for name, size in SMALL.items() if family != "lstm" or name != "num_attention_heads"}
    shape |= {"max_position_embeddings": 96} if task == "instruct" else {}
    tokenizer = TASKS[task].tokenizer(texts, 300, marks=TASKS[task].markers)
    return pyllama.create(family, tokenizer, head=TASKS[task].head, seed=1, dtype=dtype, **shape)


def task_folder(folder, task, family):
    """(the folder of a model that is about to learn the task, the inputs that fine-tuning makes of each row)"""
    setup = Setup(model="", max_length=96 if task == "instruct" else 32)
    state, tokenizer, parts, _ = finetune.prepare(TASKS[task], Source(rows_file(folder, task)), setup,
                                                  pyllama.Settings(max_steps=1), small_model(task, family))
    pretrained.Model(state.config, state.p, tokenizer).save(folder / "model")
    return folder / "model", finetune.examples(TASKS[task], parts, state, tokenizer)["train"].rows


def task_run(folder, task, family, **options):
    """A run of four steps of fine-tuning in float64."""
    settings = pyllama.Settings(max_steps=4, batch_size=2, warmup_steps=0, learning_rate=1e-2, shards=1, **options)
    for _ in pyllama.finetune(small_model(task, family, "float64"), rows_file(folder, task), task, settings,
                              out_dir=folder / "tuned", max_length=32):
        pass
    return folder / "tuned"


class Models:
    """Models of the cases, (a task or "text", a family), each made once."""

    def __init__(self, tmp_path_factory):
        self.mktemp = tmp_path_factory.mktemp
        for name in "folder", "subject", "recording":
            setattr(self, name, functools.cache(getattr(self, name)))

    def folder(self, case):
        """(the folder of a model, what it learns from, the inputs that fine-tuning makes of the rows)"""
        task, family = case
        folder = self.mktemp("-".join(case))
        if task != "text":
            model, examples = task_folder(folder, task, family)
            return model, ROWS[task][1], examples
        pyllama.create(family, written(folder / "text.txt", TEXT), seed=1, tokenizer="bpe", vocab_size=300,
                       **SMALL).save(folder)
        return folder, SENTENCE, []

    def subject(self, case):
        """(the subject, its parameters in float64)"""
        folder, given, _ = self.folder(case)
        subject = load(folder, given)
        return subject, params.rebuild(subject.state.p, (leaf.astype(np.float64)
                                                         for _, leaf in params.leaves(subject.state.p)))

    def recording(self, case):
        """The recorded step in float64."""
        subject, p = self.subject(case)
        return record(subject.loss, p)


def made(run, given=SENTENCE, most=64):
    """(subject, recording, document) of a text or a row."""
    subject = load(run, given)
    recording = record(subject.loss, subject.state.p)
    found = nudges(subject, weights(recording.grads)[:3])
    return subject, recording, document(subject, recording, update(subject, recording), found, most, 3)
