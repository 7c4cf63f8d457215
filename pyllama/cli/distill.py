"""The command distill, whose signature gives the flags (see flags.py)."""
import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress

from pyllama import memory
from pyllama.cli import tasks, text
from pyllama.cli.loading import Device
from pyllama.cli.output import console
from pyllama.cli.running import check_log_steps
from pyllama.device import like as on
from pyllama.errors import UserError
from pyllama.tasks import distill as distilling
from pyllama.tasks import finetune as tuning
from pyllama.tasks.distill import Material
from pyllama.tasks.student import Student
from pyllama.training.distilling import Distillation
from pyllama.training.loop import Settings
from pyllama.training.parallel import from_environment
from pyllama.training.run import RunPolicy, new_run


def distill(teacher: Path, /, material: Material, distillation: Distillation, student: Student, settings: Settings,
            policy: RunPolicy, out_dir: Path = Path("out"), tokenizer: Path | None = None, log_steps: int = 50,
            sample_tokens: int = 60, device: Device = "cpu") -> int:
    """Train a small model, the student, by the scores of a larger one, its teacher.

    A teacher that predicts the next token, or masked tokens, teaches on a text.  A text classifier, such as a run of
    finetune, teaches on rows of its task.  The best checkpoint of a run is the teacher.

    Args:
        teacher: model that teaches: a run, a Hugging Face folder, a GGUF or a llama2.c file
        out_dir: folder of the run: checkpoints, log, data
        tokenizer: the teacher's tokenizer (default: the one in its folder)
        log_steps: steps between progress lines when the output is not a terminal
        sample_tokens: tokens of text that the model writes after each evaluation, on one line; 0: none
        device: the CPU, or a GPU through CuPy
    """
    check_log_steps(log_steps, sample_tokens)
    memory.install()
    if teacher.is_dir() and tuning.stored_task(teacher):
        if device != "cpu":
            raise UserError("a task is learned on the CPU alone; remove device")
        if tokenizer:
            raise UserError("a teacher of a task has a tokenizer of its own; remove tokenizer")
        tasks.require_of_rows(settings, policy)
        with new_run(out_dir, f"`pyllama resume {out_dir}`") as lock:
            with teaching() as progress:
                begun = distilling.begin_rows(out_dir, teacher, material, student, distillation, settings, policy,
                                              lock=lock, progress=progress)
            for sentence in begun.notes:
                console.print(sentence)
            return tasks.train(out_dir, begun, log_steps)
    like, comm = on(device, settings.dtype), from_environment(out_dir, device)
    console.quiet = comm.rank > 0
    with new_run(out_dir, f"`pyllama resume {out_dir}`", comm.rank == 0) as lock:
        with teaching() as progress:
            plan, model = distilling.begin_text(out_dir, teacher, material, student, distillation, settings, policy,
                                                tokenizer=tokenizer, like=like, comm=comm, encode=text.encode,
                                                lock=lock, progress=progress)
        for sentence in model.notes:
            console.print(sentence)
        return text.show_training(plan, model.require_tokenizer(), log_steps, sample_tokens)


@contextlib.contextmanager
def teaching() -> Iterator[distilling.Progress]:
    """A progress bar of the teacher's scores, which appears with the first of them."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("the teacher's scores", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
