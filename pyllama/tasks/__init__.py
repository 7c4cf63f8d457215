"""The jobs people use language models for: rows in, a trained model and its measures out."""
from pyllama.tasks import classify, instruct, qa, relations, seq2seq
from pyllama.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (classify.task, seq2seq.translate, seq2seq.g2p, qa.task,
                                                       seq2seq.summarise, instruct.task, relations.task, seq2seq.write)}
