"""Lines of mathematics as MathML: every line of every derivation is well-formed, and nothing changes its meaning."""
import re
from xml.etree import ElementTree

import pytest

from pyllama.study import derivation
from pyllama.study.mathml import mathml

STEPS = [step for name in derivation.names() for one in derivation.load(name)[0] for step in one.steps]
LINES = [step.line for step in STEPS if step.check is None]
FORMULAS = sorted({formula for step in STEPS for formula in re.findall("`([^`]*)`", step.why)})


def text(line):
    """What a reader sees, fractions with a slash."""
    def shown(element):
        parts = [element.text or "", *map(shown, element)]
        if element.tag == "mfrac":
            return f"{{{parts[1]}/{parts[2]}}}"
        return f"√{{{''.join(parts)}}}" if element.tag == "msqrt" else "".join(parts)

    return shown(ElementTree.fromstring(mathml(line))).replace("\u2061", "")


def test_every_line_is_well_formed():
    for line in [*LINES, *FORMULAS]:
        assert ElementTree.fromstring(mathml(line)).tag == "math", line


@pytest.mark.parametrize(("line", "seen"), [
    ("y = a (b - c) d", "y=a(b−c)d"),                                   # a sum in a product
    ("y = a - (b - c)", "y=a−(b−c)"),                                   # a sum that is taken away
    ("y = a - b c", "y=a−bc"),
    ("y = -a b", "y=−ab"),
    ("y = a (-b)", "y=a(−b)"),                                          # not a - b
    ("y = (a b)²", "y=(ab)2"),
    ("y = (a / b)²", "y=({a/b})2"),
    ("y = a / (b + c)", "y={a/b+c}"),                                   # a fraction needs no parentheses
    ("y = (Σ_i x_i) b", "y=(∑ixi)b"),                                   # else b would be in the sum
    ("y = b Σ_i x_i", "y=b∑ixi"),
    ("y = √(2/π)", "y=√{{2/π}}"),
    ("∂(x_i r)/∂x_j = δ_ij r", "{∂(xir)/∂xj}=δijr"),
    ("dw_p = Σ_{n : i(n) = p} h_n", "dwp=∑n:i(n)=phn"),
    ("g = [x < 0] dy", "g=[x<0]dy"),
    ("y = log(a + b)", "y=log(a+b)"),
    ("= 2 x", "=2x"),
])
def test_parentheses_stand_where_they_are_needed(line, seen):
    assert text(line) == seen


def test_a_prime_is_not_a_superscript():
    """Where no font is for mathematics, a browser makes it so small, and raises it so far, that x' looks like x."""
    assert "msup" not in mathml("y_i = x'_i")
