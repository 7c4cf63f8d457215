"""The jobs people use language models for: rows in, a trained model and its measures out."""
from pyllama.tasks.classify import classify
from pyllama.tasks.seq2seq import g2p, summarise, translate, write
from pyllama.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (classify, translate, g2p, summarise, write)}
