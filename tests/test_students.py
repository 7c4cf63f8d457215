"""Students: their shapes, and the layers that they copy."""
from dataclasses import replace

import numpy as np
import pytest

from pyllama import params, pretrained
from pyllama.errors import UserError
from pyllama.tasks import student
from pyllama.training.loop import Settings
from tests.test_distilling import FAMILIES, configuration


def of_family(kind, layers=3, head=None, **changes):
    c = configuration(kind, head)
    c = replace(c, **{name: layers for name in student.SIZES["num_hidden_layers"] if name in c.names()}, **changes)
    return pretrained.Model(c, c.model.init(c, 0, "float32"))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_student_has_the_teachers_shape_but_fewer_layers_and_may_copy_them(kind):
    teacher = of_family(kind)
    own = student.student_of(teacher, student.Student(num_hidden_layers=2, copy_layers=True), Settings())
    theirs, names = dict(params.leaves(teacher.params)), dict(params.leaves(own.params))
    assert (student.layers_in(names), student.layers_in(theirs)) == (2, 3)
    for name, a in names.items():
        found = student.LAYER.match(name)
        twin = f"{found[1]}{[0, 2][int(found[2])]}{name[found.end():]}" if found else name
        np.testing.assert_array_equal(a, theirs[twin])
        assert not np.shares_memory(a, theirs[twin])
    assert student.size_of(student.shape_of(teacher, student.Student()), "num_hidden_layers") == 2      # half of 3


def test_sizes_that_are_given_change_and_the_others_follow():
    teacher = of_family("llama", num_key_value_heads=1)
    c = student.shape_of(teacher, student.Student(hidden_size=16, num_attention_heads=4))
    assert (c.hidden_size, c.num_attention_heads, c.groups, c.intermediate_size) == (16, 4, 4, 24)
    assert student.shape_of(teacher, student.Student(intermediate_size=7)).groups == 1
    gpt2 = student.shape_of(of_family("gpt2"), student.Student(hidden_size=4, resid_pdrop=0.5))
    assert (gpt2.n_embd, gpt2.n_inner, gpt2.resid_pdrop, gpt2.embd_pdrop) == (4, 6, 0.5, 0.5)


def test_a_student_of_a_teacher_with_shared_layers_shares_as_many_as_divide_its_own():
    teacher = of_family("llama", layers=4, share_layers=2)
    shared = [student.student_of(teacher, student.Student(num_hidden_layers=n, copy_layers=True), Settings())
              for n in (1, 2, 3, 4)]
    assert [model.config.share_layers for model in shared] == [1, 2, 1, 2]
    assert [len(model.params["model"]["layers"]) for model in shared] == [1, 1, 3, 2]


def test_layers_of_a_student_are_equal_and_groups_of_an_albert_divide_them():
    pruned = of_family("llama", intermediate_size_by_layer=[3, 12, 5])
    assert not student.shape_of(pruned, student.Student(num_hidden_layers=2)).is_uneven
    teacher = of_family("albert", layers=4, num_hidden_groups=4)
    assert student.shape_of(teacher, student.Student(num_hidden_layers=2)).num_hidden_groups == 2
    assert student.shape_of(teacher, student.Student(num_hidden_layers=3)).num_hidden_groups == 1


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_table_of_two_factors_is_the_nearest_to_the_teachers(kind):
    """Its distance is the norm of the singular values left out, about 1: float32 has it to some eps, hence 1e-5."""
    teacher = of_family(kind)
    chosen = student.Student(num_hidden_layers=2, copy_layers=True, embedding_size=3)
    own = student.student_of(teacher, chosen, Settings())
    tables = {name.removesuffix("projection"): a for name, a in params.leaves(own.params) if "projection" in name}
    assert tables
    theirs, names = dict(params.leaves(teacher.params)), dict(params.leaves(own.params))
    for name, p in tables.items():
        table, w = theirs[f"{name}weight"], names[f"{name}weight"]
        assert (w.shape, p.shape) == ((len(table), 3), (table.shape[1], 3))
        left = np.linalg.svd(table, compute_uv=False)[3:]
        assert np.linalg.norm(table - w @ p.T) == pytest.approx(np.linalg.norm(left), rel=1e-5)
    again = student.student_of(own, chosen, Settings())
    for name, a in params.leaves(again.params):
        if name.startswith(tuple(tables)):
            np.testing.assert_array_equal(a, names[name])


def test_a_table_of_fewer_factors_is_made_of_one_with_more_or_less():
    table = np.random.default_rng(0).standard_normal((9, 5))
    more = student.factored(table, 4)
    tree = {"table": student.factored(table, 2)}
    found = student.as_factored({"table": more}, tree)["table"]
    np.testing.assert_allclose(found["weight"] @ found["projection"].T,
                               tree["table"]["weight"] @ tree["table"]["projection"].T, atol=1e-12)


@pytest.mark.parametrize(("flags", "message"), [
    ({"embedding_size": 0}, "embedding_size is 0"),
    ({"hidden_size": 4, "copy_layers": True}, "copy_layers needs a student of the teacher's family and width"),
    ({"model": "bert"}, "a bert has no head 'lm', which the teacher has"),
    ({"model": "gtp"}, "model is 'gtp'; it must be one of llama, ")])
def test_students_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        student.student_of(of_family("llama"), student.Student(**flags), Settings())


def test_a_table_that_cannot_be_projected_is_said_to_be_so():
    teacher = of_family("lstm", head="classification")
    with pytest.raises(UserError, match="the table of an lstm cannot be projected; remove embedding_size"):
        student.student_of(teacher, student.Student(embedding_size=2), Settings())
