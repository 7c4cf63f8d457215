"""A line of mathematics as MathML, which browsers and screen readers understand without any script or font."""
from html import escape

from pyllama.study import notation
from pyllama.study.notation import HALF, MINUS, Node, parse

SUM, PRODUCT, FACTOR, ATOM = range(4)                   # how tightly the parts of an expression hold together
DISPLAY = {"Σ": "∑", "Π": "∏"}
THIN = '<mspace width="0.17em"/>'


def mathml(line: str) -> str:
    """The <math> element of a line.  Raises ValueError if it is not in the notation.

    >>> from pyllama.study.mathml import mathml
    >>> mathml("y = x²")
    '<math><mrow><mi>y</mi><mo>=</mo><msup><mi>x</mi><mn>2</mn></msup></mrow></math>'
    """
    chains = [tag("mo", "=").join(map(plain, chain)) for chain in parse(line)]
    separator = tag("mo", ",") + '<mspace width="1.5em"/>'
    return tag("math", row(separator.join(chains)))


def tag(name: str, *children: str, **attributes: str) -> str:
    given = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{name}{given}>{''.join(children)}</{name}>"


def row(*children: str) -> str:
    return tag("mrow", *children)


def plain(node: Node) -> str:
    return written(node)[0]


def within(node: Node, least: int) -> str:
    """The node, in parentheses unless it holds together as tightly as its place asks for."""
    text, binds = written(node)
    return text if binds >= least else parentheses(text)


def parentheses(text: str) -> str:
    return row(tag("mo", "("), text, tag("mo", ")"))


def written(node: Node) -> tuple[str, int]:
    """(MathML, how tightly it holds together)."""
    return WRITERS[type(node)](node)


def number(node: notation.Number) -> tuple[str, int]:
    if node.value.denominator == 1:
        return tag("mn", str(node.value)), ATOM
    if node.value.denominator in (2, 4):
        return tag("mfrac", tag("mn", str(node.value.numerator)), tag("mn", str(node.value.denominator))), ATOM
    return tag("mn", f"{float(node.value):g}"), ATOM


def identifier(text: str) -> str:
    """x is in italics; lse is upright, as browsers do by themselves; the d of dx is upright.

    Primes are not a superscript: fonts have them raised, and where no font is for mathematics they would be lost.
    """
    name = text.rstrip("'")
    primes = "′" * (len(text) - len(name))
    if name.startswith("d") and len(name) > 1:
        found = row(tag("mi", "d", mathvariant="normal"), tag("mi", escape(name[1:])))
    else:
        found = tag("mi", escape(name))
    return row(found, tag("mo", primes, lspace="0", rspace="0")) if primes else found


def name(node: notation.Name) -> tuple[str, int]:
    if not node.indices:
        return identifier(node.text), ATOM
    comma = tag("mo", ",") if any(not simple(index) for index in node.indices) else ""
    return tag("msub", identifier(node.text), row(comma.join(map(plain, node.indices)))), ATOM


def simple(index: Node) -> bool:
    return isinstance(index, notation.Number) or (isinstance(index, notation.Name) and not index.indices)


def call(node: notation.Call) -> tuple[str, int]:
    function = identifier(node.function + "'" * node.primes)
    if node.power is not None:
        function = tag("msup", function, plain(node.power))
    argument = node.arguments[0]
    bare = node.function in notation.FUNCTIONS and len(node.arguments) == 1 and isinstance(
        argument, notation.Name | notation.Reduction)
    if bare:
        return row(function, "<mo>&#x2061;</mo>", THIN, plain(argument)), PRODUCT
    inner = tag("mo", ",").join(map(plain, node.arguments))
    return row(function, "<mo>&#x2061;</mo>", parentheses(inner)), FACTOR


def total(node: notation.Sum) -> tuple[str, int]:
    first, *others = node.terms
    parts = [plain(first)]
    for term in others:
        positive = without_minus(term)
        parts += [tag("mo", "+" if positive is term else "−"), within(positive, PRODUCT)]
    return row(*parts), SUM


def without_minus(node: Node) -> Node:
    """a of -a; any other node as it is."""
    if not (isinstance(node, notation.Product) and node.factors[0] == MINUS):
        return node
    left = node.factors[1:]
    return left[0] if len(left) == 1 else notation.Product(left)


def product(node: notation.Product) -> tuple[str, int]:
    positive = without_minus(node)
    if positive is not node:
        return row(tag("mo", "−"), within(positive, PRODUCT)), SUM
    *others, last = node.factors
    parts = [within(factor, PRODUCT if isinstance(factor, notation.Inner) else FACTOR) for factor in others]
    return row(THIN.join([*parts, within(last, PRODUCT)])), PRODUCT


def inner(node: notation.Inner) -> tuple[str, int]:
    return row(within(node.left, PRODUCT), tag("mo", "·"), within(node.right, PRODUCT)), PRODUCT


def quotient(node: notation.Quotient) -> tuple[str, int]:
    return tag("mfrac", plain(node.above), plain(node.below)), FACTOR


def power(node: notation.Power) -> tuple[str, int]:
    if node.exponent == HALF:
        return tag("msqrt", plain(node.base)), ATOM
    return tag("msup", within(node.base, ATOM), plain(node.exponent)), FACTOR


def transposed(node: notation.Transposed) -> tuple[str, int]:
    return tag("msup", within(node.matrix, ATOM), tag("mi", "T", mathvariant="normal")), FACTOR


def reduction(node: notation.Reduction) -> tuple[str, int]:
    sign = tag("mo", DISPLAY[node.kind]) if node.kind in DISPLAY else tag("mo", node.kind)
    below = tag("mo", ",").join(tag("mi", letter) for letter in node.over)
    if node.condition is not None:
        below += tag("mo", ":") + relation(node.condition)
    return row(tag("munder", sign, row(below)), THIN, within(node.body, PRODUCT)), PRODUCT


def partial(node: notation.Partial) -> tuple[str, int]:
    above = row(tag("mo", "∂"), within(node.above, ATOM))
    return tag("mfrac", above, row(tag("mo", "∂"), plain(node.below))), FACTOR


def relation(node: notation.Relation) -> str:
    return row(plain(node.left), tag("mo", escape(node.sign)), plain(node.right))


def before(node: notation.Before) -> tuple[str, int]:
    return "", ATOM


def bracket(node: notation.Relation) -> tuple[str, int]:
    return row(tag("mo", "["), relation(node), tag("mo", "]")), ATOM


WRITERS: dict = {
    notation.Number: number, notation.Name: name, notation.Call: call, notation.Sum: total, notation.Product: product,
    notation.Inner: inner, notation.Quotient: quotient, notation.Power: power, notation.Transposed: transposed,
    notation.Reduction: reduction, notation.Partial: partial, notation.Before: before,
    notation.Relation: bracket}
