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


@pytest.mark.parametrize(("flags", "message"), [
    ({"hidden_size": 4, "copy_layers": True}, "copy_layers needs a student of the teacher's family and width"),
    ({"model": "bert"}, "a bert has no head 'lm', which the teacher has"),
    ({"model": "gtp"}, "model is 'gtp'; it must be one of llama, ")])
def test_students_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        student.student_of(of_family("llama"), student.Student(**flags), Settings())
