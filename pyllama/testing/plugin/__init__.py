"""A pytest plugin: check the gradients of a function with many drawn problems.

    from pyllama.testing import between

    @pytest.mark.gradcheck("x[... D], w[D] -> y[... D]", eps=between(1e-6, 0.1))
    def test_rms_norm(x, w, eps):
        return rms_norm(x, w, eps=eps)              # y, back

The inputs of the shape line (see pyllama/shapes.py) are drawn, each call with other sizes, numbers, layouts and dtypes.
Other arguments are fixtures and parameters, as ever.  The marker also takes

    eps=between(low, high), mode=[...]  an option of the function, drawn from an interval or from a list
    x=between(0.5, 2)                   where the numbers of an input lie; -6 to 6 if this is not given
    dtypes=["float64"]                  of the floating inputs: float64, float32 (both by default), float16, bfloat16
    seed=3, examples=100                as the options --gradcheck-seed and --gradcheck-examples, which go first
    atol, rtol, kinks, ...              as for gradcheck()

pytest imports this module in every run, so it imports nothing else: what it needs comes with the first marked test.
"""
import os

import pytest

MARKER = "gradcheck(line, **options): check the gradients of the function, which returns y, back, with inputs drawn " \
         "from a shape line such as 'x[... D], w[D] -> y[... D]'"
EXAMPLES = 25

RUN_SEED = pytest.StashKey[int]()
CHECKED = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("gradcheck", "gradients checked by pyllama")
    group.addoption("--gradcheck-seed", type=int, metavar="N",
                    help="seed of all that is drawn; a new one in each run if it is not given")
    group.addoption("--gradcheck-examples", type=int, metavar="N",
                    help=f"problems that are drawn for each test (default: {EXAMPLES})")
    group.addoption("--gradcheck-report", metavar="FILE.html", help="write a page with a row for each test")
    parser.addini("gradcheck_seed", "seed of all that is drawn, if --gradcheck-seed is not given", default=None)
    parser.addini("gradcheck_examples", f"problems that are drawn for each test (default: {EXAMPLES})", default=None)


def pytest_configure(config):
    config.addinivalue_line("markers", MARKER)
    seed = chosen(config, "seed", least=0)
    chosen(config, "examples", least=1)
    if seed is None:
        of_controller = getattr(config, "workerinput", {}).get("gradcheck_seed")
        seed = int.from_bytes(os.urandom(4)) if of_controller is None else of_controller
    config.stash[RUN_SEED] = seed


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """The workers of pytest-xdist draw from the seed that the summary prints."""
    node.workerinput["gradcheck_seed"] = node.config.stash[RUN_SEED]


def chosen(config, name, least):
    """The value on the command line, else that of the configuration file, else None."""
    setting, source = config.getoption(f"gradcheck_{name}"), f"--gradcheck-{name}"
    if setting is None:
        setting, source = config.getini(f"gradcheck_{name}"), f"gradcheck_{name} in {config.inipath}"
    try:
        number = None if setting in (None, "") else int(setting)
    except ValueError:
        number = least - 1
    if number is not None and number < least:
        raise pytest.UsageError(f"{source} is {setting}; give an integer from {least} up")
    return number


def of_test(item, name, default):
    """The command line's seed or number of examples, else the marker's, else the configuration's, else the default."""
    for value in (item.config.getoption(f"gradcheck_{name}"), item.get_closest_marker("gradcheck").kwargs.get(name),
                  chosen(item.config, name, 0)):
        if value is not None:
            return value
    return default


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """The names of drawn inputs stand for no fixture: pytest would not find one, or set it up in vain."""
    if item.get_closest_marker("gradcheck"):
        if type(item).__name__ == "TestCaseFunction":
            pytest.fail("the marker gradcheck is not for methods of unittest.TestCase; make a function of the test",
                        pytrace=False)
        from pyllama.testing.plugin.marker import drawn_arguments
        item.funcargs.update(dict.fromkeys(drawn_arguments(item)))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not pyfuncitem.get_closest_marker("gradcheck"):
        return None
    try:
        from pyllama.testing.plugin.run import run
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        from pyllama.errors import pip_install
        pytest.fail(f"gradcheck draws its inputs with Hypothesis, which is not installed: {pip_install('hypothesis')}",
                    pytrace=False)
    run(pyfuncitem, of_test(pyfuncitem, "seed", pyfuncitem.config.stash[RUN_SEED]),
        of_test(pyfuncitem, "examples", EXAMPLES), pyfuncitem.stash.setdefault(CHECKED, {}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and CHECKED in item.stash:
        facts = item.stash[CHECKED]                         # plain values, which also come through from workers
        report.gradcheck = facts
        if report.failed and "drawn" in facts:
            report.sections.append(("gradcheck", facts["drawn"]))
    return report


def pytest_terminal_summary(terminalreporter, config):
    reports = [report for reports in terminalreporter.stats.values() for report in reports
               if hasattr(report, "gradcheck")]
    if reports:
        examples = sum(report.gradcheck["examples"] for report in reports)
        terminalreporter.write_line(f"gradcheck: {counted(len(reports), 'test')}, {counted(examples, 'example')}, "
                                    f"--gradcheck-seed={config.stash[RUN_SEED]}")
    if path := config.getoption("gradcheck_report"):
        from pyllama.testing.plugin.page import write
        try:
            write(path, reports)
            terminalreporter.write_line(f"gradcheck: report in {path}")
        except OSError as error:
            terminalreporter.write_line(f"gradcheck: no report is written: {error}", red=True)


def counted(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"
