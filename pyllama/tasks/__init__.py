"""The tasks that models are fine-tuned on.  Each reads rows, trains a model and measures its answers."""
from pyllama.tasks import classify, instruct, qa, regress, relations, seq2seq, tag
from pyllama.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (classify.task, seq2seq.translate, seq2seq.g2p, qa.task, seq2seq.summarize,
                                 instruct.task, relations.task, seq2seq.write, tag.task, regress.task)}
