"""What a family of models says about itself: its configuration, its parameters and its functions."""
import inspect
from dataclasses import dataclass, replace

import pytest

from pyllama import params
from pyllama.models import LIBRARY_ONLY, MODELS, llama, textbook
from pyllama.models.init import outlines
from tests.test_models import DROPOUT, INPUTS, repeats_its_parent, small


def test_families_that_repeat_their_parents_are_known():
    """Tests of every case leave them out; those of this file do not.  A small BART is an mBART."""
    assert [kind for kind in MODELS if repeats_its_parent(kind)] == ["xlm-roberta", "camembert", "mbart"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_family_says_what_the_commands_and_tasks_ask_for(kind):
    model, family = MODELS[kind]
    assert kind == family.TYPE
    for head in family.HEADS:
        c = small(kind, head)
        assert c.model is model
        assert (c.head, c.vocab_size, c.hidden_size) == (head, 19, 12)
        assert type(c).from_dict(c.to_dict()).to_dict() == c.to_dict()
        assert all(getattr(c, name) == 0.3 for name in family.DROPOUTS)
        names = [name for name, _ in params.leaves(model.init(c))]
        assert all(any(name.startswith(prefix) for name in names) for prefix in family.BODY)
    assert {*family.LEARNS} <= {*family.HEADS}


@pytest.mark.parametrize("kind", MODELS)
def test_each_dropout_rate_of_a_family_changes_the_loss_of_some_head(kind):
    """Each alone, so that none stands in for another."""
    model, family = MODELS[kind]
    for rate in family.DROPOUTS:
        changed = []
        for head in set(family.HEADS) & set(INPUTS):
            c = replace(small(kind, head), **dict.fromkeys(family.DROPOUTS, 0.0))
            p = model.init(c, dtype="float64")
            plain, dropped = (model.loss(*INPUTS[head], p, each, draw=DROPOUT)[0] for each in
                              (c, replace(c, **{rate: 0.5})))
            changed.append(plain != dropped)
        assert any(changed), rate


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind in MODELS for head in MODELS[kind].config.HEADS])
def test_no_family_makes_parameters_that_it_does_not_have(kind, head):
    """A resume lets init() make as many arrays as the checkpoint has."""
    c = small(kind, head)
    with outlines(len(dict(params.leaves(c.model.init(c))))):
        c.model.init(c)


def test_a_subclass_of_a_configuration_has_the_model_of_its_parent():
    """As a reader of a notebook would write it: in a module that is not a model."""
    @dataclass(frozen=True)
    class Mine(llama.LlamaConfig):
        hidden_size: int = 64

    assert Mine().model is llama
    assert textbook.TextbookConfig().model is textbook


ORDER = ("mask", "segments", "types", "draw", "recompute", "cache", "caches", "window", "labels", "count", "truncate",
         "start", "room", "options")


@pytest.mark.parametrize("module", [module for module, _ in (*MODELS.values(), *LIBRARY_ONLY.values())],
                         ids=lambda module: module.__name__)
def test_what_follows_the_configuration_goes_by_keyword_in_one_order(module):
    for name, f in inspect.getmembers(module, inspect.isfunction):
        parameters = list(inspect.signature(f).parameters.values())
        names = [parameter.name for parameter in parameters]
        if f.__module__ == module.__name__ and name not in ("init", "batches") and "c" in names:
            options = parameters[names.index("c") + 1:]
            assert all(option.kind in (option.KEYWORD_ONLY, option.VAR_KEYWORD) for option in options), name
            order = [ORDER.index(option.name) for option in options]
            assert order == sorted(order), name
