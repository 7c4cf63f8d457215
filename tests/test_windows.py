"""Tokens are split without loss, and cut into windows that depend on (seed, step) alone and leave no token out."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.text.cuts import cut_for, document_windows
from pyllama.text.epochs import shuffled
from pyllama.text.special import Frame
from pyllama.text.tokens import Tokens, evaluation_windows, split, windows, windows_per_epoch


def counting(size):
    """Tokens whose ids are their positions."""
    return Tokens(np.arange(size, dtype=np.uint32), np.array([0]), np.array([size]))


# Split

@given(st.integers(2, 500), st.floats(0.01, 0.99))
@example(1_115_394, 0.1)
def test_a_split_by_position_is_nanogpts(size, share):
    tokens, cut = counting(size), int(size * (1 - share))
    if not 2 <= cut <= size - 2:
        with pytest.raises(UserError, match="block_size 1 needs 2"):
            split(tokens, share)
        return
    training, validation = split(tokens, share)
    assert training[:].tolist() == list(range(cut))
    assert validation[:].tolist() == list(range(cut, size))


@given(st.lists(st.integers(2, 6), min_size=2, max_size=20), st.floats(0.01, 0.5), st.integers(0, 3))
def test_a_split_by_document_partitions_whole_documents_in_order(sizes, share, seed):
    stops = np.cumsum(sizes)
    tokens = Tokens(np.arange(stops[-1]), np.append(0, stops[:-1]), stops)
    training, validation = split(tokens, share, by="document", seed=seed)
    documents = {(int(start), int(stop)) for start, stop in zip(tokens.starts, tokens.stops, strict=True)}
    parts = [list(zip(part.starts.tolist(), part.stops.tolist(), strict=True)) for part in (training, validation)]
    assert set(parts[0]) | set(parts[1]) == documents
    assert not set(parts[0]) & set(parts[1])
    assert all(part == sorted(part) for part in parts)
    assert len(parts[1]) == max(1, round(share * len(sizes)))


def test_documents_are_drawn_by_seed():
    tokens = Tokens(np.arange(400), np.arange(0, 400, 4), np.arange(4, 404, 4))
    drawn = [split(tokens, 0.1, "document", seed)[1].starts.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("by", ["position", "document"])
@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_part_without_a_window_is_refused_with_the_numbers(by, size):
    with pytest.raises(UserError, match=rf"of {size} tokens.* block_size 8 needs 9"):
        split(counting(size), 0.5, by, block_size=8)


@pytest.mark.parametrize("share", [0, 1, -0.1, 10, float("nan")])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(UserError, match="is not a share"):
        split(counting(100), share)


def test_an_unknown_way_to_split_is_refused():
    with pytest.raises(UserError, match="split by 'position' or by 'document'"):
        split(counting(100), by="chapter")


# Windows to train on

problems = st.tuples(st.integers(2, 120), st.integers(1, 12), st.integers(1, 7), st.integers(0, 99)).filter(
    lambda problem: problem[0] > problem[1])                            # size, block_size, batch_size, seed


@given(problems, st.lists(st.integers(0, 50), min_size=2, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(problem, steps):
    size, block_size, batch_size, seed = problem
    forth = {step: windows(counting(size), batch_size, block_size, seed, step) for step in steps}
    shuffled.cache_clear()
    for step in reversed(steps):
        assert (windows(counting(size), batch_size, block_size, seed, step) == forth[step]).all()


@given(problems, st.integers(0, 3))
def test_an_epoch_visits_every_window_once_and_windows_are_slices_side_by_side(problem, epoch):
    size, block_size, batch_size, seed = problem
    count = windows_per_epoch(size, block_size)
    steps = range(epoch * count // batch_size, -(-(epoch + 1) * count // batch_size))
    rows = np.concatenate([windows(counting(size), batch_size, block_size, seed, step) for step in steps])
    rows = rows[epoch * count - steps[0] * batch_size:][:count]         # batches straddle the ends of the epoch
    assert rows.shape == (count, block_size + 1)
    assert (np.diff(rows) == 1).all()                                   # ids are positions: a slice of the corpus
    starts = np.sort(rows[:, 0])
    assert (np.diff(starts) == block_size).all()
    assert starts[0] + size - 1 - rows.max() < 2 * block_size           # what is left out at the ends


def test_windows_run_across_documents():
    tokens = Tokens(np.arange(40, dtype=np.uint16), np.array([30, 0, 10]), np.array([40, 5, 20]))
    whole = tokens[:].tolist()
    batch = windows(tokens, 3, 7, 0, 0)
    assert batch.dtype == np.int64
    assert all(whole[whole.index(row[0]):][:8] == row for row in batch.tolist())
    assert (np.diff(batch) != 1).any()


def test_epochs_seeds_and_borders_differ():
    tokens, count = counting(1000), windows_per_epoch(1000, 16)
    first, second = (windows(tokens, count, 16, 0, epoch)[:, 0] for epoch in (0, 1))
    other = windows(tokens, count, 16, 1, 0)[:, 0]
    assert first.tolist() != second.tolist()
    assert first.tolist() != other.tolist()
    phases = {int(windows(tokens, count, 16, 0, epoch)[:, 0].min()) for epoch in range(400)}
    assert phases == set(range(1000 - 16 * count))                   # P(one is missed) = 24·(23/24)⁴⁰⁰ < 1e-6
    assert np.sort(first).tolist() != first.tolist()                    # shuffled


def test_over_the_epochs_every_token_is_a_target():
    seen = {int(i) for step in range(200) for i in windows(counting(50), 3, 8, 0, step)[:, 1:].ravel()}
    assert seen == set(range(1, 50))


def test_one_window_fills_a_batch_and_fewer_tokens_are_refused():
    assert windows(counting(9), 3, 8, 0, 5).tolist() == [list(range(9))] * 3
    for size in (0, 1, 8):
        with pytest.raises(UserError, match=f"there are {size} tokens, but block_size 8 needs 9"):
            windows(counting(size), 3, 8, 0, 0)


# Windows to evaluate on

@given(st.integers(2, 120), st.integers(1, 5), st.integers(1, 12))
def test_every_token_but_the_first_is_a_target_once_in_order(size, batch_size, block_size):
    targets, inputs = [], []
    for ids, labels in evaluation_windows(counting(size), batch_size, block_size):
        assert ids.shape == labels.shape
        assert ids.shape[0] <= batch_size
        assert ids.shape[1] == block_size + 1
        assert (ids[labels != -100] == labels[labels != -100]).all()
        assert (ids[labels == -100] == 0).all()                         # padding is a valid id
        predicted = labels[:, 1:] != -100
        targets += labels[:, 1:][predicted].tolist()
        inputs += ids[:, :-1][predicted].tolist()
        assert predicted.any(axis=1).all()                              # no row is computed for nothing
    assert targets == list(range(1, size))
    assert inputs == list(range(size - 1))


def test_most_bounds_the_batches():
    batches = [ids for ids, _ in evaluation_windows(counting(100), 2, 5)]
    assert len(batches) == 10
    bounded = [ids for ids, _ in evaluation_windows(counting(100), 2, 5, most=3)]
    assert np.array_equal(bounded, batches[:3])


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_to_predict_is_refused(size):
    with pytest.raises(UserError, match=f"there are {size} tokens to evaluate on"):
        next(evaluation_windows(counting(size), 2, 5))


# Each document for itself

def framed(sizes):
    """Tokens of documents of these sizes, whose ids are their positions."""
    ends = np.cumsum(sizes)
    return Tokens(np.arange(ends[-1], dtype=np.uint32), ends - sizes, ends)


FRAME = Frame([0], [], "after <s>")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8).filter(lambda sizes: max(sizes) > 1), st.integers(1, 5),
       st.integers(2, 9), st.booleans())
def test_each_document_is_evaluated_for_itself(sizes, batch_size, block_size, tails):
    tokens = framed(np.array(sizes))
    targets = []
    for ids, labels in document_windows(tokens, batch_size, block_size, tails):
        assert ids.shape == labels.shape
        assert ids.shape[1] <= block_size + 1
        assert ((ids == labels) | (labels == -100)).all()
        for row in labels:
            row = row[row != -100]
            assert (np.diff(row) == 1).all()
            assert len({int(i) for i in np.searchsorted(tokens.stops, row, "right")}) == 1      # of one document
            targets += row[1:].tolist()
    kept = tokens.stops if tails else np.minimum(tokens.stops, tokens.starts + block_size)
    assert targets == [i for begin, end in zip(tokens.starts, kept, strict=True) for i in range(begin + 1, end)]


@pytest.mark.parametrize(("sizes", "frame", "cut"), [
    ([9, 5], Frame([], [0], "followed by </s>"), (False, True, "documents end to end in windows of 10 tokens, each "
                                                               "followed by </s>")),
    ([9, 5], Frame([], [], "separated by line breaks"), (False, True, "documents end to end in windows of 10 tokens, "
                                                                      "separated by line breaks")),
    ([99], Frame([], [], "separated by line breaks"), (False, True, "the text in windows of 10 tokens")),
    ([10, 5], FRAME, (True, False, "each document for itself, after <s>")),
    ([*[10] * 9, 19], FRAME, (True, False, "each document for itself, after <s>; 1 of 10 documents are longer than 10 "
                                           "tokens, and their ends, 9 tokens, are left out")),
    ([12, 5], FRAME, (True, True, "each document for itself, after <s>, in windows of 10 tokens"))])
def test_documents_after_a_start_token_are_cut_apart_and_few_long_ends_are_left_out(sizes, frame, cut):
    assert cut_for(framed(np.array(sizes)), frame, 10) == cut


def test_documents_of_one_token_have_nothing_to_predict():
    with pytest.raises(UserError, match="no document has 2 tokens"):
        next(document_windows(framed(np.array([1, 1])), 2, 5, True))
