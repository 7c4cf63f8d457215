"""The numbers behind docs/conventions.md: where our formulas differ from those of other programs."""
import numpy as np
import pytest

from pyllama.models import bart
from pyllama.ops import attention, cross_entropy, linear_cross_entropy
from pyllama.params import leaves
from pyllama.tasks.qa import f1
from pyllama.training.loop import Settings
from pyllama.training.optim import SGD, AdamW, clip_scale
from pyllama.training.schedule import SCHEDULES
from tests.test_search import found

CHOSEN = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_steps": 4, "max_steps": 10, "decay_steps": 4}


def rates(name):
    return [round(SCHEDULES[name](step, **CHOSEN), 4) for step in range(13)]


def test_the_warmup_ends_at_its_last_step_and_the_rate_stays_low_after_the_last_step():
    warmup = [0.25, 0.5, 0.75, 1.0]
    assert rates("cosine") == [*warmup, 1.0, 0.9397, 0.775, 0.55, 0.325, 0.1603, 0.1, 0.1, 0.1]
    assert rates("linear") == [*warmup, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.1, 0.1]
    assert rates("wsd") == [*warmup, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1, 0.1]


def test_the_decay_of_sgd_is_decoupled():
    """PyTorch gives 0.85 and 0.5725: its v includes λp."""
    p, optimizer = np.ones(1), SGD(1, "float64", matrices=[slice(0, 1)], momentum=0.9)
    for expected in (0.85, 0.85 - 0.1 * (1.9 + 0.5 * 0.85)):
        optimizer.step(p, np.ones(1), 0.1, 0.5)
        assert p[0] == pytest.approx(expected, rel=1e-15)


def test_a_step_of_adamw_and_its_defaults():
    p, optimizer = np.ones(1), AdamW(1, "float64", matrices=[slice(0, 1)], betas=(0.9, 0.99), eps=1.0)
    optimizer.step(p, np.full(1, 3.0), 0.1, 0.5)
    assert p[0] == pytest.approx(1 - 0.1 * (3 / (3 + 1) + 0.5), rel=1e-15)
    assert (Settings().beta1, Settings().beta2) == (0.9, 0.99)


def test_clipping_adds_nothing_to_the_norm():
    assert clip_scale(4.0, 1.0) == 0.25


@pytest.mark.parametrize("loss", [
    lambda z, t: cross_entropy(z, t), lambda z, t: linear_cross_entropy(z, np.eye(3), t)])
def test_a_loss_without_a_counted_target_is_zero(loss):
    value, back = loss(np.ones((2, 3)), np.array([-100, -100]))
    assert value == 0
    assert not back(1.0)[0].any()


def test_the_last_query_stands_at_the_last_key_and_one_that_sees_none_gives_zero():
    q, k, v = np.ones((1, 1, 1, 3, 1)), np.ones((1, 1, 2, 1)), np.array([4.0, 8.0]).reshape(1, 1, 2, 1)
    y, back = attention(q, k, v, causal=True)
    assert y.ravel().tolist() == [0, 4, 6]
    assert not back(np.ones_like(y))[0][..., 0, :].any()
    assert attention(q, k, v, causal=True, window=1)[0].ravel().tolist() == [0, 4, 8]


def test_the_bias_of_the_logits_is_a_parameter():
    c = bart.BartConfig(vocab_size=5, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
                        decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4)
    assert dict(leaves(bart.init(c)))["final_logits_bias"].shape == (1, 5)


@pytest.mark.parametrize(("early_stopping", "best"), [(False, [0]), (True, [0]), ("never", [1] * 12)])
def test_a_search_goes_on_while_a_longer_answer_may_win(early_stopping, best):
    """After two unlikely tokens the longer answer is certain: per token it is the likeliest, but late."""
    p = [[0.6, 0.3, 0.1], [0.9, 0.05, 0.05], *[[0.01, 0.98, 0.01]] * 10]
    answers, = found(lambda source, ids: np.log(p[len(ids)]), 1, max_new_tokens=12, num_beams=2,
                     early_stopping=early_stopping)
    assert answers[0].ids == best


def test_the_f1_of_two_empty_answers_is_one():
    assert (f1([], []), f1([], ["a"]), f1(["a"], [])) == (1, 0, 0)
