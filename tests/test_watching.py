"""Watchers of op calls: their order, what they may change, and the threads that they hold for."""
import contextlib
import contextvars
import functools
import threading

import numpy as np
import pytest

from pyllama.op import watching
from pyllama.ops import dropout, relu


def noting(log, name):
    """A watcher that writes down what passes through it."""
    def watch(op, call, inputs, options):
        log.append((name, op.name, options))
        y, back = call(*inputs, **options)

        def watched_back(dy):
            log.append((name, "back"))
            return back(dy)

        return y, watched_back

    return watch


def test_watchers_surround_every_call_the_inner_context_s_first():
    log, x = [], np.ones((2, 3))
    with watching(noting(log, "outer")):
        with watching(noting(log, "inner")):
            _, back = dropout(x, rate=0.5, key=(1,))
            back(x)
        dropout(x, rate=0.25)
    assert log == [("inner", "dropout", {"rate": 0.5, "key": (1,)}), ("outer", "dropout", {"rate": 0.5, "key": (1,)}),
                   ("inner", "back"), ("outer", "back"), ("outer", "dropout", {"rate": 0.25})]
    dropout(x)
    assert len(log) == 5


def test_a_watcher_may_change_inputs_and_results_and_ends_with_an_error():
    def twice(op, call, inputs, options):
        y, back = call(*(2 * x for x in inputs), **options)
        return y + 1, lambda dy: tuple(2 * d for d in back(dy))

    x = np.arange(3.0)
    with contextlib.suppress(ZeroDivisionError), watching(twice):
        y, back = relu(x)
        np.testing.assert_array_equal(y, [1, 3, 5])
        np.testing.assert_array_equal(back(x)[0], [0, 2, 4])
        with pytest.raises(TypeError, match=r"^relu takes "):        # nor does an error within a call
            relu(x, x)
        np.testing.assert_array_equal(relu(x)[0], [1, 3, 5])
        _ = 1 / 0
    np.testing.assert_array_equal(relu(x)[0], x)


def test_a_watcher_holds_for_its_own_thread_and_copies_of_its_context():
    log, x = [], np.ones(3)
    with watching(noting(log, "watcher")):
        for run in (relu, functools.partial(contextvars.copy_context().run, relu)):
            thread = threading.Thread(target=run, args=(x,))
            thread.start()
            thread.join()
    assert len(log) == 1
