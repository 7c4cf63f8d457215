"""Pictures made of characters: their marks, their size, and ASCII where the output has nothing else."""
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.cli import characters
from pyllama.cli.characters import ASCII, bar, curve, shade


def test_a_curve_is_drawn_mark_by_mark():
    """Two by four marks: up from the lower left, ⡀⠄, to the upper right, ⠐⠈."""
    assert curve([(0, 0), (1, 1)], width=1, height=1)[0].split()[-1] == chr(0x2800 + 0x40 + 0x04 + 0x10 + 0x08)
    first, *_, last, axis = curve([(3, 5.0), (7, 1.0)], [(7, 1.0)], width=10, height=4)
    assert first.split() == ["5", first.split()[1]]
    assert last.split()[0] == "1"
    assert last.endswith(characters.UNICODE.dot)
    assert axis.split() == ["3", "7"]


numbers = st.floats().filter(lambda x: not math.isfinite(x) or not x or 1e-99 < abs(x) < 1e99)      # 10 letters
points = st.lists(st.tuples(numbers, numbers))


@given(line=points, dots=points, ink=st.sampled_from([characters.UNICODE, ASCII]))
def test_a_curve_has_the_size_that_is_asked_for(line, dots, ink):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(characters, "ink", lambda: ink)
        lines = curve(line, dots, width=20, height=5)
    drawable = [p for p in line + dots if all(map(math.isfinite, p))]
    assert len(lines) == (6 if drawable else 1)
    assert all(len(text) <= len("-1.234e-99 ") + 20 for text in lines[:-1])
    if ink is ASCII:
        assert "".join(lines).isascii()
    if any(all(map(math.isfinite, p)) for p in dots):
        assert ink.dot in "".join(lines)


def test_a_standard_output_without_blocks_gets_ascii(monkeypatch):
    assert (bar(1.0, 1.0, 3), bar(-1.0, 1.0, 3), shade(1.0), shade(0.0)) == ("███", "░░░", "█", " ")
    monkeypatch.setattr("sys.stdout", type("Narrow", (), {"encoding": "latin-1"})())
    assert (bar(1.0, 1.0, 3), bar(-1.0, 1.0, 3), shade(1.0), shade(1e-6)) == ("+++", "---", "#", ".")
