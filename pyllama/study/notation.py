"""The notation of the derivations, read: a line of mathematics becomes a tree that can be computed.

    dx_j = r (g_j - n_j mean_i g_i n_i)                             one number per row

A line is a chain of expressions with = between them; behind a comma there may be another one.  What follows after three
spaces is a remark.

    x_ts  w_{i(n)}  z_{n,t(n)}  u_n0        an array and its indices: letters, digits or expressions
    h_{t-1}                                 0 where the index is outside of its axis
    a b    a · b    a / b    a²    a^-½     products, quotients and powers; √ a
    Σ_i a_i b_i    mean_j a_j    max_j a_j  of the whole product that follows; Σ_{n : i(n) = p} a_n under a condition
    log a    exp(a - b)    cosh² a          functions; without parentheses, of the next factor
    ∂y_i/∂x_j    ∂(x_i r)/∂x_j    Φ'(x)     derivatives
    [v = t_n]                               1 where the condition holds, 0 elsewhere
    δ_ij                                    1 where both indices are equal, 0 elsewhere
    dyᵀ x                                   a product of matrices; ᵀ exchanges rows and columns
"""
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

FUNCTIONS = ("exp", "log", "tanh", "sinh", "cosh", "sin", "cos", "erf", "max", "min", "mean", "abs", "floor",
             "ceil")
REDUCTIONS = ("Σ", "Π", "mean", "max")
SUPERSCRIPTS = {"²": 2, "³": 3, "⁴": 4}
RELATIONS = ("=", "≠", "<", ">", "≤", "≥")
REMARK = re.compile(r"(?<!,)\s{3,}")
LETTER = r"[^\W\d_ΣΠ∂√²³⁴ᵀ½¼]"
TOKEN = re.compile(rf"""
    (?P<number>\d+(\.\d+)?(e-?\d+)?|½|¼)
  | (?P<reduce>(Σ|Π|mean|max)_(\{{|{LETTER}+))
  | (?P<name>{LETTER}+\d*'*)
  | (?P<sub>_\{{|_({LETTER}|\d)+)
  | (?P<sign>[-+/·^()\[\]{{}},=≠<>≤≥∂√²³⁴ᵀ:])
""", re.VERBOSE)


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class Number(NamedTuple):
    value: Fraction


class Name(NamedTuple):
    """An array, or an index as a number; `indices` are expressions."""
    text: str
    indices: tuple["Node", ...] = ()


class Call(NamedTuple):
    """function(arguments)^power, differentiated `primes` times."""
    function: str
    arguments: tuple["Node", ...]
    primes: int = 0
    power: "Node | None" = None


class Sum(NamedTuple):
    terms: tuple["Node", ...]


class Product(NamedTuple):
    factors: tuple["Node", ...]


class Inner(NamedTuple):
    """a · b: the inner product of two vectors, or a product of numbers."""
    left: "Node"
    right: "Node"


class Quotient(NamedTuple):
    above: "Node"
    below: "Node"


class Power(NamedTuple):
    base: "Node"
    exponent: "Node"


class Transposed(NamedTuple):
    matrix: "Node"


class Reduction(NamedTuple):
    """Σ, Π, mean or max over these indices; Σ where the condition holds."""
    kind: str
    over: tuple[str, ...]
    condition: "Relation | None"
    body: "Node"


class Partial(NamedTuple):
    """∂above/∂below"""
    above: "Node"
    below: Name


class Before(NamedTuple):
    """The first side of the line before, in a line that begins with =."""


class Relation(NamedTuple):
    """A condition, as in brackets."""
    sign: str
    left: "Node"
    right: "Node"


Node = (Number | Name | Call | Sum | Product | Inner | Quotient | Power | Transposed | Reduction | Partial | Before |
        Relation)
MINUS = Number(Fraction(-1))
HALF = Number(Fraction(1, 2))


def arguments(function: str) -> int:
    """How many arguments a function of the notation has."""
    return 2 if function in ("max", "min") else 1


def without_remark(text: str) -> str:
    """The mathematics of a line alone.

    >>> from pyllama.study.notation import without_remark
    >>> without_remark("r = x²          one number per row")
    'r = x²'
    """
    return REMARK.split(text.strip())[0]


def parse(text: str) -> list[tuple[Node, ...]]:
    """The chains of a line, each a tuple of equal expressions.  Raises ValueError if it is not in the notation.

    >>> from pyllama.study.notation import parse
    >>> (y, product), = parse("y_j = 2 x_j")
    >>> y
    Name(text='y', indices=(Name(text='j', indices=()),))
    """
    return Parser(without_remark(text)).line()


class Parser:
    """Reads one line, from left to right."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = [*tokens(text), Token("end", "", len(text), len(text))]
        self.at = 0

    # --- tokens ---

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1].text

    def takes(self, *texts: str) -> bool:
        """Take the next token if it is one of these."""
        found = self.next.text in texts
        self.at += found
        return found

    def expect(self, text: str) -> None:
        if not self.takes(text):
            raise ValueError(f"{text!r} is missing in {self.text!r} before {self.next.text or 'the end'!r}")

    # --- lines ---

    def line(self) -> list[tuple[Node, ...]]:
        chains = [self.chain()]
        while self.takes(","):
            chains.append(self.chain())
        if self.next.kind != "end":
            raise ValueError(f"{self.next.text!r} is not expected in {self.text!r}")
        return chains

    def chain(self) -> tuple[Node, ...]:
        sides: list[Node] = [Before()] if self.next.text == "=" else [self.sum()]
        while self.takes("="):
            sides.append(self.sum())
        return tuple(sides)

    # --- expressions ---

    def sum(self) -> Node:
        terms = [self.signed()]
        while self.next.text in ("+", "-"):
            terms.append(self.signed())
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))

    def signed(self) -> Node:
        if self.takes("-"):
            return Product((MINUS, self.product()))
        self.takes("+")
        return self.product()

    def product(self) -> Node:
        found = self.factor()
        while True:
            if self.takes("/"):
                found = Quotient(found, self.factor())
            elif self.takes("·"):
                found = Inner(found, self.factor())
            elif self.begins_factor():
                found = Product((*found.factors, self.factor()) if isinstance(found, Product) else
                                (found, self.factor()))
            else:
                return found

    def begins_factor(self) -> bool:
        kind, text, *_ = self.next
        return kind in ("number", "name", "reduce") or text in ("(", "[", "√", "∂")

    def factor(self) -> Node:
        found = self.atom()
        while True:
            if self.next.text in SUPERSCRIPTS:
                found = Power(found, Number(Fraction(SUPERSCRIPTS[self.take()])))
            elif self.takes("^"):
                found = Power(found, self.exponent())
            elif self.takes("ᵀ"):
                found = Transposed(found)
            else:
                return found

    def exponent(self) -> Node:
        if self.takes("-"):
            return Product((MINUS, self.atom()))
        return self.atom()

    def atom(self) -> Node:
        kind, text, *_ = self.next
        if kind == "number":
            self.take()
            return Number({"½": Fraction(1, 2), "¼": Fraction(1, 4)}.get(text) or Fraction(text))
        if kind == "reduce":
            return self.reduction()
        if kind == "name":
            return self.named()
        if self.takes("("):
            found = self.sum()
            self.expect(")")
            return found
        if self.takes("["):
            found = self.relation()
            self.expect("]")
            return found
        if self.takes("√"):
            return Power(self.factor(), HALF)
        if self.takes("∂"):
            return self.partial()
        raise ValueError(f"an expression is missing in {self.text!r} before {text or 'the end'!r}")

    def partial(self) -> Partial:
        above = self.atom()
        self.expect("/")
        self.expect("∂")
        below = self.atom()
        if not isinstance(below, Name):
            raise ValueError(f"∂ below a fraction must be followed by a name in {self.text!r}")
        return Partial(above, below)

    def relation(self) -> Relation:
        left = self.sum()
        sign = self.take()
        if sign not in RELATIONS:
            raise ValueError(f"a condition needs one of {' '.join(RELATIONS)} in {self.text!r}")
        return Relation(sign, left, self.sum())

    def reduction(self) -> Reduction:
        kind, _, letters = self.take().partition("_")
        condition = None
        if letters == "{":
            over = [self.take()]
            while self.takes(","):
                over.append(self.take())
            if self.takes(":"):
                condition = self.relation()
                if kind != "Σ":
                    raise ValueError(f"only a sum may have a condition, not {kind}, in {self.text!r}")
            self.expect("}")
        else:
            over = [letters] if len(letters) > 3 else list(letters)         # Σ_rows is over one axis, Σ_ij over two
        return Reduction(kind, tuple(over), condition, self.product())

    def named(self) -> Node:
        text = self.take()
        function = text.rstrip("'")
        if function in FUNCTIONS:
            power = None
            if self.next.text in SUPERSCRIPTS:
                power = Number(Fraction(SUPERSCRIPTS[self.take()]))
            arguments = self.arguments() if self.next.text == "(" else (self.factor(),)
            return Call(function, arguments, len(text) - len(function), power)
        if self.next.kind == "sub":
            return Name(text, self.indices(self.take()[1:]))
        if self.next.text == "(" and self.is_call():
            return Call(function, self.arguments(), len(text) - len(function))
        return Name(text)

    def is_call(self) -> bool:
        """Is the parenthesis right behind the name, without a space between?"""
        return self.tokens[self.at - 1].end == self.next.start

    def arguments(self) -> tuple[Node, ...]:
        self.expect("(")
        found = [self.sum()]
        while self.takes(","):
            found.append(self.sum())
        self.expect(")")
        return tuple(found)

    def indices(self, text: str) -> tuple[Node, ...]:
        if text != "{":
            return tuple(Number(Fraction(c)) if c.isdigit() else Name(c) for c in text)
        found = [self.sum()]
        while self.takes(","):
            found.append(self.sum())
        self.expect("}")
        return tuple(found)


def tokens(text: str) -> Iterator[Token]:
    """Raises ValueError at a character that is not in the notation."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = TOKEN.match(text, at)
        if not found:
            raise ValueError(f"{text[at]!r} is not in the notation, in {text!r}")
        at = found.end()
        yield Token(str(found.lastgroup), found.group(), found.start(), at)
