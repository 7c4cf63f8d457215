"""Read the marker gradcheck of a test: which inputs and options are drawn, and what pytest sets up."""
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from pyllama import shapes
from pyllama.op import between

EXAMPLE = '@pytest.mark.gradcheck("x[... D], w[D] -> y[... D]")'
OURS = {"seed", "examples", "dtypes"}                       # keywords of the marker
FORWARDED = {"eps", "atol", "rtol", "nondet_tol", "fast_mode", "jvp", "kinks", "methods"}       # keywords of gradcheck
DTYPES = ("float64", "float32", "float16", "bfloat16")
USUAL = DTYPES[:2]


class Misuse(Exception):
    """A mistake in how the marker is used: one sentence, cause and cure."""


@dataclasses.dataclass(frozen=True)
class Marked:
    """A marked test.

    module, name    where it is defined: "test_norms", "TestRMSNorm().test_backward"
    inputs, outputs of the shape line
    ranges          of the numbers of inputs, by name
    options         of the function, by name: an interval, a list, or a value
    fixtures        the other arguments, as pytest has set them up
    forwarded       keywords of gradcheck
    """
    module: str
    name: str
    function: Callable
    inputs: list[shapes.Array]
    outputs: list[shapes.Array]
    ranges: dict[str, between]
    options: dict[str, Any]
    dtypes: tuple[str, ...]
    fixtures: dict[str, Any]
    forwarded: dict[str, Any]


def marked(item) -> Marked:
    """Read the marker of a test.  Raises Misuse if it does not fit the function."""
    (inputs, outputs), keywords = sides_of(item), item.get_closest_marker("gradcheck").kwargs
    names, parameters = [x.name for x in inputs], inspect.signature(item.obj).parameters
    ranges = {name: value for name, value in keywords.items() if name in names}
    options = {name: value for name, value in keywords.items() if name in parameters and name not in names}
    others = keywords.keys() - ranges.keys() - options.keys()
    arguments = [name for name in item._fixtureinfo.argnames if name not in names and name not in options]
    require_parameters(item, names, parameters, {*names, *options})
    require_keywords(item, others - OURS - FORWARDED)
    require_fixtures(item, arguments)
    require_ranges(ranges, {x.name for x in inputs if not x.below})
    test_class = f"{item.cls.__name__}()." if item.cls else ""
    return Marked(item.module.__name__, f"{test_class}{item.originalname}", item.obj, inputs, outputs, ranges,
                  options, dtypes_of(keywords), {name: item.funcargs[name] for name in arguments},
                  {name: keywords[name] for name in others & FORWARDED})


def line_of(item) -> str:
    arguments = item.get_closest_marker("gradcheck").args
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise Misuse(f"the marker gradcheck takes one shape line; write {EXAMPLE}")
    return arguments[0]


def sides_of(item) -> tuple[list[shapes.Array], list[shapes.Array]]:
    """(inputs, outputs) of the shape line."""
    try:
        return shapes.parse(line_of(item))
    except ValueError as error:
        raise Misuse(str(error)) from None


def drawn_arguments(item) -> list[str]:
    """The arguments that pytest need not set up: the inputs and options of the marker, and all that it does not know.

    Whether they are right is found out in the test itself, which then fails; an error of the setup would be unclear.
    """
    try:
        drawn = {x.name for x in sides_of(item)[0]} | item.get_closest_marker("gradcheck").kwargs.keys()
    except Misuse:
        drawn = set()
    return [name for name in item._fixtureinfo.argnames if name in drawn or not is_fixture(item, name)]


def is_fixture(item, name: str) -> bool:
    return name in item._fixtureinfo.name2fixturedefs or name == "request"


def require_parameters(item, names, parameters, drawn) -> None:
    """All inputs are parameters; none that is drawn is parametrized, too."""
    if missing := [name for name in names if name not in parameters]:
        raise Misuse(f"{item.originalname}() has no parameter {missing[0]!r}, which {line_of(item)!r} has as an input; "
                     f"name the parameters after the inputs")
    if twice := drawn & getattr(getattr(item, "callspec", None), "params", {}).keys():
        raise Misuse(f"{min(twice)!r} is drawn by the marker gradcheck and parametrized, too; rename one of the two")


def require_keywords(item, unknown) -> None:
    if unknown:
        raise Misuse(f"the marker gradcheck has {min(unknown)}=, but {item.originalname}() has no such parameter; add "
                     f"one, or leave it out")


def require_fixtures(item, arguments) -> None:
    if unknown := [name for name in arguments if not is_fixture(item, name)]:
        raise Misuse(f"{unknown[0]!r} is a parameter of {item.originalname}(), but neither an input of "
                     f"{line_of(item)!r} nor an option of the marker nor a fixture; add it to one of these")


def require_ranges(ranges, floating) -> None:
    for name, interval in ranges.items():
        if name not in floating or not isinstance(interval, between):
            raise Misuse(f"the marker gradcheck has {name}={interval!r}; give a range of a floating input, such as "
                         f"between(0.5, 2)")


def dtypes_of(keywords) -> tuple[str, ...]:
    dtypes = keywords.get("dtypes", USUAL)
    listed = dtypes if isinstance(dtypes, list | tuple) else [dtypes]
    names = [getattr(dtype, "__name__", str(dtype)) for dtype in listed]            # np.float32, too
    if not names or not {*names} <= {*DTYPES}:
        raise Misuse(f"the marker gradcheck has dtypes={dtypes!r}; give some of {', '.join(DTYPES)}")
    return tuple(names)
