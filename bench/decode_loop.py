"""The loop of a worker of bench/decode.py: an engine generates, and the time of each token is noted.

An engine has a method generate(prompt, count, on_token), which calls on_token(id) as soon as each of the `count` most
likely tokens is known, and a text `notes`.  Needs nothing but Python, so that every environment can run it.
"""
import functools
import sys
import time

from bench.rotation import peak_rss, serve


def main(open_engine):
    """Answer requests with open_engine(*arguments); where it fails, the answer is {"error": why}."""
    engine = functools.cache(lambda: open_engine(*sys.argv[1:]))

    def answer(**request):
        try:
            return answered(engine(), **request)
        except Exception as error:
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())}

    serve(answer)


def answered(engine, tasks=(), gaps=None):
    """The answer to a request: tasks are pairs (prompt, count); gaps is (prompt, ids) for the method of that name."""
    if gaps:
        return {"gaps": engine.gaps(*gaps)}
    return {"runs": [timed(engine, *task) for task in tasks], "peak_rss": peak_rss(), "notes": engine.notes}


def timed(engine, prompt, count):
    """The ids of the tokens, when the prompt was given and when each was known.  All processes share this clock."""
    ids, known = [], []

    def on_token(token):
        known.append(time.monotonic())
        ids.append(int(token))

    begin = time.monotonic()
    engine.generate(prompt, count, on_token)
    return {"ids": ids, "begin": begin, "known": known}
