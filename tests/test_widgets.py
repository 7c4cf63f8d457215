"""The widgets of the site: their formulas in JavaScript, their numbers, and what a reader sees who turns them."""
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import pyllama.ops  # noqa: F401                            registers all ops
from pyllama.op import OPS
from pyllama.training.optim import SGD, AdamW

SITE = Path(__file__).parents[1] / "docs" / "site"
SCRIPTS = SITE / "_static" / "widgets"
RUN = """
const formulas = require(process.argv[1]);
const problems = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(problems.map(({ op, row }) => formulas[op](row))));
"""
TOLERANCE = 1e-12                                           # numbers near 1, and ten roundings


@pytest.fixture(scope="module")
def widgets(site):
    return site("widgets")


def in_javascript(problems):
    """What formulas.js makes of (op, inputs) pairs."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    rows = [{"op": op, "row": {name: np.asarray(value).tolist() for name, value in inputs.items()}}
            for op, inputs in problems]
    run = subprocess.run([node, "-e", RUN, str(SCRIPTS / "formulas.js")], input=json.dumps(rows), text=True,
                         capture_output=True, check=True)
    return json.loads(run.stdout)


def in_python(op, inputs):
    y, back = OPS[op](*(row for name, row in inputs.items() if name != "dy"))
    names = [f"d{name}" for name in inputs if name != "dy"]
    return {"y": y, **dict(zip(names, back(inputs["dy"]), strict=True))}


@pytest.mark.parametrize("op", ["rms_norm", "softmax"])
def test_javascript_computes_what_pyllama_does(op, widgets):
    rng = np.random.default_rng(0)
    shapes = [(len(widgets.ROWS[op]), width) for width in range(2, 9) for _ in range(20)]
    problems = [(op, dict(zip(widgets.ROWS[op], rng.normal(size=shape), strict=True))) for shape in shapes]
    for (_, inputs), row in zip(problems, in_javascript(problems), strict=True):
        for name, value in in_python(op, inputs).items():
            np.testing.assert_allclose(row[name], value, TOLERANCE, TOLERANCE, err_msg=f"{name} of {inputs}")


def test_javascript_turns_as_pyllama_does_and_turns_back():
    rng = np.random.default_rng(0)
    problems = [(rng.normal(size=2 * rng.integers(1, 6)), int(rng.integers(0, 101)), rng.uniform(2, 1e5))
                for _ in range(50)]
    turned, back = (in_javascript([("rope", {"x": x, "position": sign * position, "base": base})
                                   for x, position, base in problems]) for sign in (1, -1))
    for (x, position, base), forward, backward in zip(problems, turned, back, strict=True):
        y, transposed = OPS["rope"](x[None], start=position, base=base)
        np.testing.assert_allclose(forward["y"], y[0], TOLERANCE, TOLERANCE)
        np.testing.assert_allclose(backward["y"], transposed(x[None])[0][0], TOLERANCE, TOLERANCE)


def attended(inputs):
    q, k, v, dy = (inputs[name][None, None] for name in ("q", "k", "v", "dy"))
    y, back = OPS["attention"](q[:, :, None], k, v, inputs["mask"][None])
    dq, dk, dv, _ = back(dy[:, :, None])
    return {"y": y[0, 0, 0], "dq": dq[0, 0, 0], "dk": dk[0, 0], "dv": dv[0, 0]}


def test_attention_in_javascript_is_that_of_pyllama_with_any_mask():
    rng = np.random.default_rng(0)
    problems = [{**dict(zip(["q", "k", "v", "dy"], rng.normal(size=(4, length, 3)), strict=True)),
                 "mask": rng.integers(0, 2, (length, length))} for length in range(1, 7) for _ in range(10)]
    assert any(not problem["mask"].any(axis=1).all() for problem in problems), "some query sees no key"
    for inputs, row in zip(problems, in_javascript([("attention", one) for one in problems]), strict=True):
        for name, value in attended(inputs).items():
            np.testing.assert_allclose(row[name], value, TOLERANCE, TOLERANCE, err_msg=f"{name} of {inputs}")


def path_of(optimizer, inputs):
    p = np.array(inputs["start"])
    points = [p.copy()]
    for _ in range(inputs["steps"]):
        optimizer.step(p, inputs["curvatures"] * p, inputs["lr"], decay=inputs.get("decay", 0.0))
        points.append(p.copy())
    return points


def test_paths_in_javascript_are_those_of_the_optimizers():
    rng, all_of_it = np.random.default_rng(0), [slice(0, 2)]
    for _ in range(5):
        common = {"start": rng.normal(size=2), "curvatures": rng.uniform(1, 4, 2), "steps": 20,
                  "lr": rng.uniform(0.01, 0.4)}
        adam = common | {"betas": rng.uniform(0.5, 0.99, 2), "eps": 1e-8, "decay": rng.uniform(0, 1)}
        first, second = in_javascript([("adamw", adam), ("sgd", common)])
        optimizer = AdamW(2, np.float64, matrices=all_of_it, betas=tuple(adam["betas"]), eps=adam["eps"])
        np.testing.assert_allclose(first["path"], path_of(optimizer, adam), TOLERANCE, TOLERANCE)
        plain = SGD(2, np.float64, matrices=all_of_it)
        np.testing.assert_allclose(second["path"], path_of(plain, common), TOLERANCE, TOLERANCE)


def test_no_exponent_of_the_softmax_in_javascript_overflows():
    inputs = {"x": np.array([1000.0, 999.0, -1000.0]), "dy": np.array([1.0, 0.0, 1.0])}
    row, = in_javascript([("softmax", inputs)])
    for name, value in in_python("softmax", inputs).items():
        np.testing.assert_allclose(row[name], value, TOLERANCE, TOLERANCE)


def test_the_errors_of_differences_have_their_orders(widgets):
    """Truncation: ε for forward differences, ε² for central ones.  Rounding: 2⁻⁵³ / ε, but none for a complex step."""
    for op in widgets.INPUTS:
        errors = {kind: np.array(values) for kind, values in widgets.errors(op).items()}
        wide, narrow = slice(2, 7), widgets.STEPS < 1e-10
        orders = {kind: np.polyfit(np.log(widgets.STEPS[wide]), np.log(values[wide]), 1)[0]
                  for kind, values in errors.items()}
        assert {kind: round(order) for kind, order in orders.items()} == {"forward": 1, "central": 2, "complex": 2}
        assert errors["complex"][narrow].max() < 1e-13 < errors["central"][narrow].max(), op


def test_a_page_has_the_widgets_of_its_op(widgets):
    assert widgets.places("rms_norm").count('class="widget"') == 2
    assert widgets.places("gelu").count('class="widget"') == 1
    assert [widgets.places(name).count('class="widget"') for name in ("rope", "attention", "adamw")] == [1, 1, 1]
    assert widgets.places("dropout") == ""


# --- in a browser -----------------------------------------------------------------------------------------------------

@pytest.fixture
def opened(browser, widgets, tmp_path):
    """opened(language, op): the browser with a page that has the widgets of this op, and nothing else."""
    def page(language, op):
        scripts = "".join(f'<script src="{(SCRIPTS / name).as_uri()}"></script>' for name in widgets.SCRIPTS)
        file = tmp_path / "page.html"
        file.write_text(f'<!doctype html><html lang="{language}"><meta charset="utf-8">{scripts}{widgets.places(op)}',
                        "utf-8")
        browser.get(file.as_uri())
        return browser
    yield page
    assert browser.get_log("browser") == []


def labeled(browser, label):
    return browser.find_element("css selector", f'input[aria-label="{label}"]')


def shown(browser, name):
    """The numbers of a row, with their signs."""
    row, = (row for row in browser.find_elements("css selector", ".numbers tbody tr")
            if row.find_element("css selector", "th").text == name)
    return [text.replace("−", "-") for text in row.text.split()[1:]]


@pytest.mark.parametrize("op", ["rms_norm", "softmax"])
def test_a_key_on_a_slider_moves_all_rows(opened, widgets, op):
    browser = opened("en", op)
    labeled(browser, "x[1]").send_keys("\ue014")                                # the right arrow: one step of 0.1
    inputs = {name: np.array(row) for name, row in widgets.ROWS[op].items()}
    inputs["x"][1] += 0.1
    for name, value in (inputs | in_python(op, inputs)).items():
        assert shown(browser, name) == [f"{one:+.4f}" if abs(one) >= 5e-5 else "0.0000" for one in value], name


def test_the_slider_of_epsilon_shows_the_numbers_of_its_step(opened, widgets):
    browser = opened("en", "gelu")
    labeled(browser, "step ε").send_keys("\ue010")                              # the end key
    status = browser.find_element("css selector", ".status").text.replace("−", "-")
    errors = {kind: values[-1] for kind, values in widgets.errors("gelu").items()}
    numbers = [float(part.split(" ")[-1]) for part in status.split(" · ")]
    np.testing.assert_allclose(numbers, [1e-16, errors["complex"], errors["central"], errors["forward"]], rtol=0.05)


def test_the_score_of_turned_pairs_is_that_of_their_distance(opened, widgets):
    def score():
        return float(browser.find_element("css selector", ".status").text.split()[-1].replace("−", "-"))

    browser = opened("en", "rope")
    first = score()
    position, distance = browser.find_elements("css selector", "input")
    position.send_keys("\ue010")
    assert score() == first
    distance.send_keys("\ue010")
    q, k = (np.array(widgets.TURNED[name])[None] for name in "qk")
    (q, _), (k, _) = OPS["rope"](q, start=200), OPS["rope"](k, start=100)
    assert score() == round(float(np.sum(q * k)), 4)


def test_a_hidden_key_changes_the_gradient_and_its_outlined_sum(opened, widgets):
    browser = opened("en", "attention")
    browser.find_element("css selector", '[aria-label^="mask[2,1]"]').send_keys(" ")
    browser.find_element("css selector", '[aria-label^="dv[1,0]"]').send_keys(" ")
    inputs = {name: np.array(rows) for name, rows in widgets.ATTENDED.items()}
    inputs["mask"][2, 1] = 0
    shown = browser.find_element("css selector", ".status").text.replace("−", "-")
    assert shown.split()[-1] == f"{attended(inputs)['dv'][1, 0]:+.4f}"
    assert len(browser.find_elements("css selector", "td.used")) == 8               # four of p, four of dy


def test_a_learning_rate_of_sgd_beyond_the_steepness_diverges(opened):
    browser = opened("en", "adamw")
    labeled(browser, "learning rate of SGD").send_keys("\ue010")                # 0.5, and 2/c is 0.2
    adamw, sgd = (float(part.split(": ")[1].replace("e+", "e"))
                  for part in browser.find_element("css selector", ".status").text.split(" · ")[1:])
    assert adamw < 1 < 1e9 < sgd


def test_the_table_behind_the_picture_has_every_step(opened, widgets):
    browser = opened("en", "gelu")
    browser.find_element("css selector", "summary").click()
    first = [row.text.split()[0].replace("−", "-") for row in browser.find_elements("css selector", "details tbody tr")]
    np.testing.assert_allclose([float(text) for text in first], widgets.STEPS, rtol=0.05)


def test_a_chinese_page_has_chinese_widgets(opened):
    assert "复步法" in opened("zh-CN", "rms_norm").find_element("css selector", ".status").text
    assert "complex" not in opened("zh-CN", "rms_norm").find_element("css selector", "body").text
