"""Chat templates: what they give, what they may do, and how they fail."""
import pytest

from pyllama.errors import UserError
from pyllama.text import chat_template, special
from pyllama.text.tokenizer import Tokenizer

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 < 2?"},
        {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message['content'] | trim + '<|im_end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
AS_TEXT = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in TALK)


def tokenizer(template):
    plain = special.byte_pairs(["text"], 300)
    return Tokenizer(plain.rust, {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template})


def test_a_template_writes_each_turn_and_begins_the_answer():
    assert chat_template.render(tokenizer(CHATML), TALK) == AS_TEXT + "<|im_start|>assistant\n"


def test_of_several_templates_the_default_is_used():
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": CHATML}]
    assert chat_template.render(tokenizer(several), TALK[:2]).endswith("1 < 2?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(("template", "text"), [
    ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
    ("{{ messages[1] | tojson }}", '{"role": "user", "content": "1 < 2?"}'),
    ("{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }} {% endfor %}", "system user "),
    ("{{ 'b' if tools else 'a' }}", "a"),
])
def test_a_template_has_the_variables_and_functions_of_transformers(template, text):
    assert chat_template.render(tokenizer(template), TALK) == text


@pytest.mark.parametrize(("template", "complaint"), [
    ("{% if %}", r"fails in line 1: .*fix chat_template in tokenizer_config.json"),
    ("{{ messages[9].content.x }}", "the tokenizer's chat template fails: .*has no element 9"),
    ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate; change"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails: .*unsafe"),
    ("{{ messages.append(1) }}", "fails: .*'append' of 'list' object is unsafe; fix"),
    (7, "chat_template in tokenizer_config.json is not a text"),
    ([{"name": "tools", "template": "no"}], "1 chat templates, but none with the name 'default'"),
])
def test_a_template_that_fails_says_where_to_fix_it(template, complaint):
    with pytest.raises(UserError, match=complaint):
        chat_template.render(tokenizer(template), TALK)
