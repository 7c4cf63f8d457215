"""What gradcheck found: a report that is true if nothing is wrong, and the exception that carries it."""
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pyllama.testing.report import html, text

Method = Literal["complex step", "differences", "order", "dot product", "rounding"]
Status = Literal["passed", "wrong", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What one method says of the gradient of one output with respect to one input.

    method      how the derivative was found
    status      "undecided": the method says nothing here, for the reason in `why`
    claimed     what back says; a number, because every method compares one number at a time, the worst one
    measured    what the function does
    error       |claimed - measured|
    tolerance   the largest error that is not a fault of back
    why         a sentence: the inequality with its numbers, or why the method is undecided
    """
    method: Method
    status: Status
    claimed: float = float("nan")
    measured: float = float("nan")
    error: float = float("nan")
    tolerance: float = float("nan")
    why: str = ""

    @property
    def severity(self) -> float:
        """How many tolerances the error has; 0 if undecided, or passed without a number; infinite if NaN is wrong."""
        if self.status == "undecided" or (self.status == "passed" and math.isnan(self.error)):
            return 0.0
        ratio = self.error / self.tolerance if self.tolerance else float("inf") if self.error else 0.0
        return ratio if ratio == ratio else float("inf")


@dataclass(frozen=True)
class Pair:
    """The gradient of one output with respect to one input.

    input, output   their names: "input 0", "input 1 at weight", "x"; "output 0", "y"
    verdicts        one of each method that was tried
    where           which inputs the worst verdict belongs to: "as given", "strided dy", "random w", ...
    index           the entry of the input with the largest error; None if all are right or none was looked at
    diagnoses       what is probably wrong, in sentences, the most specific one first
    """
    input: str
    output: str
    verdicts: tuple[Verdict, ...]
    where: str = "as given"
    index: tuple[int, ...] | None = None
    diagnoses: tuple[str, ...] = ()

    @property
    def wrong(self) -> bool:
        return any(verdict.status == "wrong" for verdict in self.verdicts)

    @property
    def worst(self) -> Verdict:
        """The worst of the wrong verdicts; if none is wrong, the first: they are in the order of their exactness."""
        return max(self.verdicts, key=lambda verdict: verdict.severity if verdict.status == "wrong" else -1.0)


@dataclass(frozen=True)
class Fault:
    """A mistake that is not a wrong number.

    kind        "input mutated", "not deterministic", "wrong shape", "wrong dtype", "dy mutated", "layout", ...
    sentence    the cause and the cure
    """
    kind: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """The result of gradcheck: true if no fault was found, no pair is wrong and every pair was judged.

    function    its name
    pairs       one for each floating input and output, the worst last
    faults      of the function as a whole
    notes       what the reader should know: "y has a kink in x", "the output shares memory with x: ..."
    skipped     what the time budget left out
    seed        of everything random
    case        the smallest failing case as Python to paste; "" if nothing is wrong
    replay      the call or the command that gives this report again

    >>> import numpy as np
    >>> from pyllama.testing import gradcheck
    >>> report = gradcheck(lambda x: (x ** 3, lambda dy: 6 * x * x * dy), [np.ones(3)], raise_exception=False)
    >>> bool(report), len(report.pairs), report.pairs[0].input
    (False, 1, 'x')
    """
    function: str
    pairs: tuple[Pair, ...]
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seed: int = 0
    case: str = ""
    replay: str = ""
    worst_first: ClassVar[bool] = False

    def __bool__(self) -> bool:
        return not self.faults and all(pair.worst.status == "passed" for pair in self.pairs)

    @property
    def error(self) -> float:
        """The largest error of all pairs, relative to its tolerance: right gradients have at most 1."""
        return max((pair.worst.severity for pair in self.pairs), default=0.0)

    def __str__(self) -> str:
        return self.text()

    def text(self, only_wrong: bool = False) -> str:
        """The report as plain text: a line for each pair, the worst last, then what is wrong in words.

        only_wrong      leave out the lines of the pairs that passed
        """
        return text.text(self, only_wrong)

    def to_json(self) -> str:
        """The report as JSON: the fields under their names, every float exactly.

        JSON has no number for them, so NaN is null, and infinities are "inf" and "-inf".

        >>> import json
        >>> import numpy as np
        >>> from pyllama.testing import gradcheck
        >>> report = gradcheck(lambda x: (2 * x, lambda dy: 2 * dy), [np.ones(3)])
        >>> [pair["input"] for pair in json.loads(report.to_json())["pairs"]]
        ['x']
        """
        return json.dumps({"passed": bool(self), "error": plain(self.error), **plain(asdict(self))}, allow_nan=False,
                          ensure_ascii=False)

    def _repr_html_(self) -> str:
        return html.html(self)


def plain(value: Any) -> Any:
    """The value with the types that JSON has."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "__index__"):                     # of Python or NumPy
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None if math.isnan(number) else str(number)


class GradcheckError(AssertionError):
    """A gradient that gradcheck found wrong; `report` says where and why.

    >>> import numpy as np
    >>> from pyllama.testing import GradcheckError, gradcheck
    >>> try:
    ...     gradcheck(lambda x: (x * x, lambda dy: x * dy), [np.array([1.0, -2.0, 3.0])])
    ... except GradcheckError as error:
    ...     print(len(error.report.pairs), "gradient is wrong")
    1 gradient is wrong
    """

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report
