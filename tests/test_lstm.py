"""LSTMs: what gradient tests cannot see, and trained weights with known results."""
import json
from dataclasses import replace

import numpy as np
import pytest

from pyllama import params
from pyllama.errors import UserError
from pyllama.formats.keras import from_keras, to_keras
from pyllama.models import lstm
from pyllama.models.lstm import LstmConfig
from pyllama.ops import linear, lstm_cell
from pyllama.rng import NO_DRAW, Draw
from pyllama.testing import check_partials
from tests.shared import SHARED, needs
from tests.test_models import randomized, require_right

G2PM = SHARED / "fixtures/bilstm_g2pm"

C = LstmConfig(vocab_size=11, embedding_dim=3, hidden_size=4, num_layers=2, num_labels=5)
LENGTHS = np.array([4, 7, 0, 1])
MASK = (np.arange(10) < LENGTHS[:, None]).astype(int)
IDS = np.random.default_rng(0).integers(0, C.vocab_size, MASK.shape)
TAGS = np.random.default_rng(1).integers(0, C.num_labels, MASK.shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain(ids, p, truncate=None, carried=None):
    """hidden() of one sequence without padding, a token at a time.  A state is a constant where it is carried into a
    position that is a multiple of `truncate`, or out of it in reverse: that of the first call with this `carried`."""
    x = p["embedding"]["weight"][ids]
    for number in range(C.num_layers):
        ys = []
        for suffix, order in ("", range(len(ids))), ("_reverse", range(len(ids))[::-1]):
            w_ih, w_hh, b_ih, b_hh = (p["lstm"][f"{name}_l{number}{suffix}"]
                                      for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            h = c = np.zeros(C.hidden_size)
            y = {}
            for t in order:
                if truncate and t != order[0] and (t + (suffix != "")) % truncate == 0:
                    h, c = carried.setdefault((number, suffix, t), (h, c))
                i, f, g, o = np.split(w_ih @ x[t] + b_ih + w_hh @ h + b_hh, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                y[t] = h = sigmoid(o) * np.tanh(c)
            ys.append([y[t] for t in range(len(ids))])
        x = np.concatenate(ys, axis=1)
    return x


@pytest.mark.parametrize("truncate", [None, 1, 2, 3, 10])
def test_every_sequence_goes_its_own_way_forward_and_back(truncate):
    """The batch is its sequences one by one, zero at padding; so are its gradients, cut where states are constants."""
    p = randomized(lstm, C)
    x, back = lstm.hidden(IDS, p, C, mask=MASK, truncate=truncate)
    dx = np.random.default_rng(2).standard_normal(x.shape)
    carried = [{} for _ in LENGTHS]

    def rows(p):
        return [(b, n, plain(IDS[b, :n], p, truncate, carried[b])) for b, n in enumerate(LENGTHS) if n]

    for b, n, y in rows(p):
        np.testing.assert_allclose(x[b, :n], y, rtol=1e-12, atol=1e-14)
    assert not x[MASK == 0].any()

    def loss(p):
        return sum(np.sum(dx[b, :n] * y) for b, n, y in rows(p)), lambda: back(dx)

    body = {name: p[name] for name in ("embedding", "lstm")}
    require_right(check_partials(loss, body, seed=0, entries=0, budget=None))


def test_truncation_reaches_the_loss_and_spares_the_classifier():
    """Nothing forward changes, nor does a gradient above the states; recomputed layers are cut alike."""
    p = randomized(lstm, C)
    whole, cut, again = (lstm.loss(IDS, TAGS[:, 0], p, C, mask=MASK, **options)
                         for options in ({}, {"truncate": 2}, {"truncate": 2, "recompute": True}))
    assert whole[0] == cut[0]
    whole, cut, again = (dict(params.leaves(back())) for _, back in (whole, cut, again))
    for name, d in cut.items():
        assert np.array_equal(d, whole[name]) is name.startswith("classifier"), name
        np.testing.assert_array_equal(again[name], d)


@pytest.mark.parametrize("truncate", [None, 3])
@pytest.mark.parametrize("head", LstmConfig.HEADS)
def test_padding_changes_nothing(head, truncate):
    """Three more columns of it, whatever they hold, change no more than how the products of larger matrices round."""
    c = replace(C, head=head)
    p = randomized(lstm, c)

    def results(T):
        labels = TAGS[:, :T] if head == "tagging" else TAGS[:, 0]
        value, back = lstm.loss(IDS[:, :T], labels, p, c, mask=MASK[:, :T], truncate=truncate)
        z, _ = lstm.logits(IDS[:, :T], p, c, mask=MASK[:, :T])
        return {"loss": value, "logits": z[:, :7]} | dict(params.leaves(back()))

    wide = results(10)
    for name, want in results(7).items():
        np.testing.assert_allclose(wide[name], want, rtol=1e-12, atol=1e-13, err_msg=name)


def test_a_sequence_is_classified_by_the_states_its_directions_end_in():
    """Forward's at the last token, reverse's at the first; without a token both are zero, and the bias decides."""
    p = randomized(lstm, C)
    z, _ = lstm.logits(IDS, p, C, mask=MASK)
    w, b = p["classifier"].values()
    for ids, n, got in zip(IDS, LENGTHS, z, strict=True):
        y = plain(ids[:n], p) if n else np.zeros((1, 2 * C.hidden_size))
        want = w @ np.concatenate([y[-1, :C.hidden_size], y[0, C.hidden_size:]]) + b
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


def test_dropout_lies_between_layers_and_before_the_classifier():
    """Only where there is a key: not after one layer, after two; and in any case in the logits."""
    c = replace(C, dropout=0.5)
    for layers, changes in (1, False), (2, True):
        c = replace(c, num_layers=layers)
        p = randomized(lstm, c)
        x, dropped = (lstm.hidden(IDS, p, c, draw=draw)[0] for draw in (NO_DRAW, Draw((5,))))
        assert np.array_equal(x, dropped) is not changes
        z, never = (lstm.logits(IDS, p, config)[0] for config in (c, replace(c, dropout=0.0)))
        np.testing.assert_array_equal(z, never)
        assert not np.array_equal(z, lstm.logits(IDS, p, c, draw=Draw((5,)))[0])


@pytest.mark.parametrize("head", LstmConfig.HEADS)
def test_dropout_does_not_know_how_a_batch_is_cut_into_parts(head):
    c = replace(C, dropout=0.5, head=head)
    p = randomized(lstm, c)
    whole, _ = lstm.logits(IDS, p, c, mask=MASK, draw=Draw((5,)))
    part, _ = lstm.logits(IDS[1:3], p, c, mask=MASK[1:3], draw=Draw((5,), row=1))
    np.testing.assert_allclose(part, whole[1:3], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("call", "message"), [
    (lambda p: lstm.logits(IDS, p, C, mask=MASK[:, ::-1]), "token after padding; put the padding on the right"),
    (lambda p: lstm.logits(IDS, p, C, mask=MASK[:, :6]), r"mask has shape \(4, 6\), but ids have \(4, 10\); give"),
    (lambda p: lstm.logits(IDS[:, :0], p, C), "ids have length 0; give"),
    (lambda p: lstm.logits(IDS, p, C, truncate=0), "truncate is 0; it must be at least 1"),
    (lambda p: replace(C, hidden_size=0), "hidden_size is 0; it must be at least 1"),
    (lambda p: replace(C, classifier_size=0), "classifier_size is 0; it must be at least 1"),
    (lambda p: replace(C, dropout=1.0), "dropout is 1.0; it must lie in 0 <= p < 1"),
    (lambda p: replace(C, head="regression"), "head is 'regression'; it must be one of classification, tagging"),
    (lambda p: LstmConfig.from_dict({"model_type": "gru"}), "model_type = 'gru'; lstm supports only 'lstm'"),
    (lambda p: from_keras(np.ones((5, 12)), np.ones((4, 12)), np.ones(12)), "give the weights of an LSTM layer"),
    (lambda p: from_keras(np.ones((5, 16)), np.ones((4, 16)), np.ones(32)), "give the weights of an LSTM layer"),
])
def test_what_makes_no_sense_is_refused_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call(randomized(lstm, C))


def test_a_config_survives_the_way_there_and_back():
    """With the keys that mean nothing here."""
    stored = replace(C, head="tagging", dropout=0.25, classifier_size=6).to_dict() | {"id2label": {"0": "a"}}
    assert LstmConfig.from_dict(stored).to_dict() == stored


# Keras

def test_keras_weights_make_the_same_step_and_survive_the_way_there_and_back():
    """The step as in Keras' documentation: h and c from x, with gates i f c o side by side."""
    rng, E, D = np.random.default_rng(4), 3, 4
    kernel, recurrent, bias = (rng.standard_normal(shape) for shape in ((E, 4 * D), (D, 4 * D), 4 * D))
    x, h, c = (rng.standard_normal((2, wide)) for wide in (E, D, D))
    z = x @ kernel + h @ recurrent + bias
    state = sigmoid(z[:, D:2 * D]) * c + sigmoid(z[:, :D]) * np.tanh(z[:, 2 * D:3 * D])
    w_ih, w_hh, b_ih, b_hh = from_keras(kernel, recurrent, bias)
    (got, got_state), _ = lstm_cell(linear(x, w_ih, b_ih)[0] + linear(h, w_hh, b_hh)[0], c)
    np.testing.assert_allclose(got_state, state, rtol=1e-12)
    np.testing.assert_allclose(got, sigmoid(z[:, 3 * D:]) * np.tanh(state), rtol=1e-12)
    for a, b in zip(to_keras(w_ih, w_hh, b_ih, b_hh), (kernel, recurrent, bias), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(to_keras(w_ih, w_hh, b_ih, bias)[2], 2 * bias)


# Trained weights

@needs(G2PM)
def test_the_trained_model_reads_chinese_as_published():
    """g2pM's BiLSTM (Park & Lee, 2020) on its 9,893 sentences, each with one character marked: 97.36 % are right."""
    vocabulary = json.loads((G2PM / "vocab.json").read_text(encoding="utf-8"))
    characters, classes = vocabulary["char2idx"], vocabulary["class2idx"]
    start, end = characters["시"], characters["끝"]
    weights = np.load(G2PM / "g2pm_bilstm_f32.npz")
    c = LstmConfig(vocab_size=len(characters), embedding_dim=64, hidden_size=32, num_labels=len(classes),
                   head="tagging", classifier_size=32)
    p = params.named(lstm.init(c), {name.replace("logit_layer", "classifier"): weights[name] for name in weights})
    sentences, labels = ((G2PM / name).read_text(encoding="utf-8").splitlines() for name in ("dev.sent", "dev.lb"))
    examples = []
    for sentence, label in zip(sentences, labels, strict=True):
        before, target, after = sentence.split("▁")
        ids = [characters.get(character, characters["<UNK>"]) for character in before + target + after]
        examples.append(([start, *ids, end], 1 + len(before), classes[label]))
    examples.sort(key=lambda example: len(example[0]))
    right = 0
    for first in range(0, len(examples), 256):
        texts, targets, labels = zip(*examples[first:first + 256], strict=True)
        lengths = np.array([len(ids) for ids in texts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, int)
        ids[mask] = np.concatenate(texts)
        z, _ = lstm.logits(ids, p, c, mask=mask)
        right += int(np.sum(z[np.arange(len(texts)), targets].argmax(axis=-1) == labels))
    assert len(examples) == 9893
    assert right == 9632
