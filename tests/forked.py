"""The command line in forks of a process that has imported it already: half a second less than a process each.

A fork differs in no more than that.  Its streams are made as Python makes them when it starts, it runs what
`python -m pyllama` runs, and it ends as Python ends, with all that may fail there.
"""
import json
import os
import runpy
import subprocess
import sys

from tests.another import ROOT

UNREAD = "unread"                               # instead of the name of a file: a pipe whose reader is gone


class Forks:
    """Runs commands in forks; to be closed."""

    def __init__(self):
        variables = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        self.parent = subprocess.Popen([sys.executable, "-X", "utf8=0", "-m", "tests.forked"], text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | variables)

    def run(self, words, folder, streams, encoding=None):
        """The exit code of a command that runs in the folder.

        streams     standard output and standard error, each the name of a file, UNREAD, or None: it is closed
        encoding    of the streams, as PYTHONIOENCODING would set it
        """
        task = [list(map(str, words)), str(folder), [stream and str(stream) for stream in streams], encoding]
        print(json.dumps(task), file=self.parent.stdin, flush=True)
        return int(self.parent.stdout.readline())

    def close(self):
        self.parent.communicate()


def serve():
    """Run each task of standard input in a fork, and print its exit code."""
    from pyllama.cli.main import COMMANDS
    [*COMMANDS.values()]                                    # import all commands, which the forks share
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            become(*json.loads(line))
            runpy.run_module("pyllama", run_name="__main__")            # raises SystemExit, which ends the fork
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(words, folder, streams, encoding):
    """Make this fork what Python would be as it starts with these words, in this folder, with these streams."""
    os.chdir(folder)
    sys.argv = ["pyllama", *words]
    redirect(0, os.devnull)
    for number, stream in enumerate(streams, 1):
        redirect(number, stream)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)                  # noqa: SIM115 -- as long as the fork
    sys.stdout = sys.__stdout__ = streams[0] and like(sys.stdout, 1, encoding)
    sys.stderr = sys.__stderr__ = streams[1] and like(sys.stderr, 2, encoding)


def like(stream, number, encoding):
    """A stream of a file's number that is made as this one was."""
    return open(number, "w", 1 if stream.line_buffering else -1, encoding or stream.encoding, stream.errors,
                closefd=False)


def redirect(number, stream):
    if stream is None:
        os.close(number)
        return
    if stream == UNREAD:
        reader, fd = os.pipe()
        os.close(reader)
    else:
        fd = os.open(stream, os.O_RDWR | os.O_CREAT)
    os.dup2(fd, number)
    os.close(fd)


if __name__ == "__main__":
    serve()
