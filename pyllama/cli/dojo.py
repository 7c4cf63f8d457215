"""The command dojo: find the bugs of the catalogue, one at a time."""
from dataclasses import replace
from pathlib import Path

from pyllama.cli.output import quoted
from pyllama.errors import UserError, counted
from pyllama.testing.dojo import Exercise, Progress, exercises, find, registering_nothing
from pyllama.testing.named import cause, from_file, not_ending
from pyllama.testing.report import Report

FOLDER = Path("dojo")


def dojo(exercise: str | None = None, /, hint: bool = False, restart: bool = False, list: bool = False,
         folder: Path = FOLDER) -> int:
    """Learn to find bugs in backward passes: each exercise is a file with one bug to repair.

    The first call writes the file of an exercise.  Edit it and call again: the checker judges it.  Once it is right,
    the next call goes on to the next exercise.  The exit code is 1 if the attempt is not right yet.

    Args:
        exercise: rms_norm.3, or rms_norm for its first one (default: the one at hand, or the next)
        hint: print one more hint
        restart: write the file again; a changed one is kept beside it, as .bak
        list: list the exercises and what is solved
        folder: of the files and of the progress
    """
    progress = Progress(folder)
    if list:
        if exercise or hint or restart:
            raise UserError("--list shows all exercises; remove it, or remove the exercise, --hint and --restart")
        return listed(progress)
    chosen = find(exercise) if exercise else progress.next()
    if chosen is None:
        print(f"all {counted(len(exercises()), 'exercise')} are solved")
        return 0
    path = folder / chosen.file
    if restart or not path.exists():
        opened(chosen, path, progress)
    elif not hint:
        with not_ending(path.name):
            return judged(chosen, path, progress)
    if hint:
        hinted(chosen, progress)
    return 0


def command(progress: Progress, *words: str) -> str:
    """What to type, with the folder unless it is the usual one."""
    folder = [] if progress.folder == FOLDER else ["--folder", str(progress.folder)]
    return " ".join(map(quoted, ["pyllama", "dojo", *words, *folder]))


def listed(progress: Progress) -> int:
    """Print a line for each op."""
    every = exercises()
    for op in {exercise.bug.op: None for exercise in every}:
        mine = [exercise for exercise in every if exercise.bug.op == op]
        marks = "".join("x" if progress.of(exercise).solved else "." for exercise in mine)
        print(f"{op:22}{marks:24}{marks.count('x')} of {len(mine)} solved")
    solved = sum(progress.of(exercise).solved for exercise in every)
    print(f"{'all':22}{'':24}{solved} of {len(every)} solved")
    return 0


def opened(exercise: Exercise, path: Path, progress: Progress) -> None:
    """Write the file of the exercise; an attempt that is there stays beside it."""
    progress.save(exercise)
    if path.exists() and path.read_text("utf-8", errors="replace") != exercise.text:
        path.replace(path.with_suffix(".py.bak"))
    path.write_text(exercise.text, "utf-8")
    print(f"{exercise.name}: {path} has one bug.  Its derivation is right.\n"
          f"Fix the code, then run {command(progress)} again.  One hint at a time: {command(progress, '--hint')}")


def hinted(exercise: Exercise, progress: Progress) -> None:
    """Print the hints up to the next one."""
    standing = progress.of(exercise)
    standing.hints = min(standing.hints + 1, len(exercise.hints))
    progress.save(exercise)
    for number, sentence in enumerate(exercise.hints[:standing.hints], start=1):
        print(f"hint {number} of {len(exercise.hints)}: {sentence}")


def judged(exercise: Exercise, path: Path, progress: Progress) -> int:
    """Check the file."""
    with registering_nothing():
        module = from_file(path)
    missing = [name for name in ("forward", "backward") if not callable(getattr(module, name, None))]
    if missing:
        raise UserError(f"{path} has no function {missing[0]}; write it again, or start over with --restart")
    standing = progress.of(exercise)
    standing.attempts += 1
    try:
        report = exercise.judge(module.backward, module.forward)
    except Exception as error:                              # of the student's code
        print(f"{exercise.name}: not yet; {path.name} raises {cause(error)}")
        report = None
    standing.solved = standing.solved or bool(report)
    progress.save(exercise)
    if report:
        return solved(exercise, progress)
    name = [exercise.name] if standing.solved else []       # without its name the next one would be opened
    if report is not None:
        print(repeatable(report, path, command(progress, *name)).text(only_wrong=True))
        print(f"{exercise.name}: not yet.  {command(progress, *name, '--hint')} helps")
    return 1


def repeatable(report: Report, path: Path, replay: str) -> Report:
    """The report with a command that gives it again, and with a case that finds the file."""
    found = f"import sys\nsys.path.insert(0, {str(path.parent)!r})\n"
    return replace(report, replay=replay, case=found + report.case if report.case else "")


def solved(exercise: Exercise, progress: Progress) -> int:
    """Say what the bug was and where it happened, and what comes next."""
    standing = progress.of(exercise)
    print(f"{exercise.name} is solved, with {counted(standing.attempts, 'attempt')} and "
          f"{counted(standing.hints, 'hint')}.\n\n{exercise.bug.cause}")
    if exercise.bug.cited:
        print(f"It really happened: {exercise.bug.source}")
    following = progress.next()
    print(f"\nNext: {following.name}, with {command(progress)}" if following else "\nThat was the last one.")
    return 0
