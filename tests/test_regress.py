"""The task regress: its labels, its loss and gradient, its metrics, and every model that learns it."""
import json

import numpy as np
import pytest

import pyllama
from pyllama import check_gradient
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.models.layers import class_loss
from pyllama.tasks import regress
from pyllama.tasks.rows import BadRow
from tests.shared import written


@pytest.mark.parametrize(("label", "value"), [(3, 3.0), ("2.50", 2.5), (-1e3, -1000.0), (" 7 ", 7.0)])
def test_a_label_is_a_number(label, value):
    assert regress.usable({"text": "a", "label": label})["label"] == value


@pytest.mark.parametrize("label", ["good", "", True, [1], "nan", float("inf"), "1,5"])
def test_other_labels_are_bad_rows(label):
    with pytest.raises(BadRow, match=r"'label' is .* not a number"):
        regress.usable({"text": "a", "label": label})


def test_the_loss_is_the_mean_squared_error_and_its_gradient_is_exact():
    z, labels = np.array([[1.0], [2.0], [-1.0]]), np.array([1.5, 0.0, -1.0])
    assert class_loss(z, labels)[0] == pytest.approx((0.25 + 4 + 0) / 3)
    assert class_loss(z, labels, count=2)[0] == pytest.approx(4.25 / 2)

    def only_dz(loss):
        value, back = loss
        return value, lambda dvalue: back(dvalue)[:1]

    for count in (None, 2):
        check_gradient(lambda z, count=count: only_dz(class_loss(z, labels, count=count)), [z])
    assert class_loss(z.astype(np.float32), labels)[1]()[0].dtype == np.float32
    for wrong, options in ((np.zeros((3, 2)), {}), (z, {"label_smoothing": 0.1}), (z, {"z_loss": 0.1}),
                           (z, {"weights": np.ones(3)})):
        with pytest.raises(UserError, match="numbers are estimated by a single score"):
            class_loss(wrong, labels, **options)


@pytest.mark.parametrize("family", ["bert", "llama", "bart", "lstm"])
def test_a_model_with_the_head_learns_numbers(family, tmp_path, capsys):
    """The number of a film's stars: 1 or 4."""
    lines = [{"sentence": f"a {word} film {i}", "score": stars} for i in range(8)
             for word, stars in (("fine", 4), ("dull", 1.0))]
    data = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    run = tmp_path / "run"
    assert main(["finetune", "--task", "regress", "--model", family, "--data", str(data), "--out_dir", str(run),
                 "--dev", "0.25", "--max_steps", "80", "--vocab_size", "300", "--batch_size", "12", "--shards", "1",
                 "--learning_rate", "0.003", "--eval_steps", "20", "--resid_pdrop", "0"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["mean_squared_error"] < 1 < 1.5 ** 2                    # of the mean of all labels
    assert metrics["pearson"] > 0.9
    capsys.readouterr()
    assert main(["predict", "--model", str(run), "--data", str(data)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(abs(row["predicted"] - row["score"]) < 1.5 for row in answers)
    config = pyllama.load(run).config
    assert (config.num_labels, config.extra["problem_type"]) == (1, "regression")
    again = main(["finetune", "--task", "classify", "--model", str(run), "--data", str(data), "--out_dir",
                  str(tmp_path / "more"), "--max_steps", "1", "--shards", "1"])
    assert again == 0
    config = pyllama.load(tmp_path / "more").config
    assert (config.num_labels, config.extra.get("problem_type")) == (2, None)
