"""The jobs people use language models for: rows in, a trained model and its measures out."""
from pyllama.tasks import classify, instruct, seq2seq
from pyllama.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (classify.task, seq2seq.translate, seq2seq.g2p, seq2seq.summarise,
                                                       seq2seq.write, instruct.task)}
