"""What verify() found: a table of properties, and a call to paste for each kind of mistake."""
import json
from dataclasses import asdict, dataclass
from typing import Literal

Standing = Literal["right", "wrong", "refused", "not tried"]


@dataclass(frozen=True)
class Mistake:
    """What is wrong in one call.

    what        the result that is wrong, "y" or "dx", or "dtype of y", "inputs", "state", ...
    sentence    both values and the inequality, or the cause
    refused     the function raised an exception of a kind that says: not supported

    >>> from pyllama.testing.verify.result import Mistake
    >>> str(Mistake("dx", "dx[0] is 0.5, rms_norm has 0.25: |0.5 - 0.25| = 0.25 > 1e-10"))
    'dx[0] is 0.5, rms_norm has 0.25: |0.5 - 0.25| = 0.25 > 1e-10'
    """
    what: str
    sentence: str
    refused: bool = False

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Property:
    """One property of a function: see verify.py.

    calls       how many were tried
    refused     how many of these the function refused
    share       the largest error of the right calls, in tolerances
    mistake     the first one found, made small
    case        the call of the mistake as Python to paste
    note        why it was not tried, or what a refusal said
    """
    name: str
    calls: int = 0
    refused: int = 0
    share: float = 0.0
    mistake: Mistake | None = None
    case: str = ""
    note: str = ""

    @property
    def verdict(self) -> Standing:
        if self.mistake:
            return "wrong"
        if not self.calls:
            return "not tried"
        return "refused" if self.refused == self.calls else "right"

    def __str__(self) -> str:
        """A line of the table."""
        text = f"{self.name:12}{self.calls or '-':>6}  {self.verdict:11}"
        if self.mistake:
            return text + str(self.mistake)
        if self.refused:
            return text + f"{self.refused} refused: {self.note}"
        return (text + (f"largest error {self.share:.2g} tolerances" if self.share else self.note)).rstrip()


@dataclass(frozen=True)
class Verification:
    """The result of verify(): true if no property is wrong, and values were judged.

    function, op    their names
    shapes          the shape line of the op
    properties      in the order in which they were tried
    notes           options and inputs that were not passed
    seed            of everything random

    >>> from pyllama.testing.verify.result import Property, Verification
    >>> found = Verification("mine:f", "tanh", "x[... F] -> y[... F]", (Property("values", 20),), (), 7)
    >>> bool(found), found["values"].calls
    (True, 20)
    """
    function: str
    op: str
    shapes: str
    properties: tuple[Property, ...]
    notes: tuple[str, ...]
    seed: int

    def __bool__(self) -> bool:
        return self["values"].calls > 0 and not any(p.mistake for p in self.properties)

    @property
    def only_values(self) -> bool:
        """Was no gradient compared?"""
        return any(p.name == "gradients" and not p.calls for p in self.properties)

    def __getitem__(self, name: str) -> Property:
        """The property of that name.  Raises KeyError."""
        return {p.name: p for p in self.properties}[name]

    def __str__(self) -> str:
        return self.text()

    def text(self, only_wrong: bool = False) -> str:
        """The table, the notes, then one call to paste for each kind of mistake."""
        wrong = [p for p in self.properties if p.mistake]
        shown = wrong if only_wrong else self.properties
        lines = [f"{self.function} and {self.op}, {self.shapes}; seed {self.seed}", "",
                 *([f"{'property':12}{'calls':>6}  verdict"] if shown else []), *map(str, shown), ""]
        lines += [f"not passed  {note}" for note in self.notes]
        lines.append(f"wrong: {', '.join(p.name for p in wrong)}" if wrong else
                     "nothing could be judged" if not self else
                     "nothing is wrong with the values; no gradient was compared" if self.only_values else
                     "nothing is wrong")
        kinds: set[str] = set()
        for p in wrong:
            if p.mistake and p.mistake.what not in kinds:
                kinds.add(p.mistake.what)
                lines += ["", f"The smallest call found, {p.name}: {p.mistake}", ""]
                lines += [f"    {line}".rstrip() for line in p.case.split("\n")]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same as JSON: the fields of the dataclasses, and "right"."""
        properties = [asdict(p) | {"verdict": p.verdict} for p in self.properties]
        return json.dumps(asdict(self) | {"right": bool(self), "properties": properties}, indent=2)
