"""Chat templates: how a tokenizer's model wants a conversation written, in the template language Jinja.

    render(tokenizer, [{"role": "user", "content": "Hello."}])

gives the text that ends where the assistant's answer begins.  The variables and functions of a template are those of
transformers' apply_chat_template.
"""
import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from pyllama.errors import UserError, optional
from pyllama.text.tokenizer import Tokenizer

CHOSEN = "default"                                          # of several templates, each with a name


def template_of(tokenizer: Tokenizer) -> str | None:
    """The template in the tokenizer's settings; None if it has none.

    Raises UserError if there are several, and none is the default.
    """
    stored = tokenizer.settings.get("chat_template")
    if isinstance(stored, list):
        named = {item.get("name"): item.get("template") for item in stored if isinstance(item, dict)}
        stored = named.get(CHOSEN)
        if stored is None:
            raise UserError(f"the tokenizer has {len(named)} chat templates, but none with the name {CHOSEN!r}; keep "
                            f"one as chat_template in tokenizer_config.json")
    if stored is not None and not isinstance(stored, str):
        raise UserError("chat_template in tokenizer_config.json is not a text; fix it or remove it")
    return stored


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> str:
    """The conversation as a text, up to where the next answer begins.

    messages    {"role": "system" | "user" | "assistant", "content": text}

    Raises UserError if the template fails or refuses the messages, and without the package jinja2.
    """
    template = template_of(tokenizer)
    assert template is not None
    sandbox, jinja = optional("jinja2.sandbox", "a chat template"), optional("jinja2", "a chat template")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                        extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.datetime.now().strftime}
    tokens = {role: tokenizer.special_token(role) or "" for role in ("bos_token", "eos_token")}
    try:
        return environment.from_string(template).render(messages=list(messages), add_generation_prompt=True, **tokens)
    except Exception as error:                              # a template may compute anything
        if isinstance(error, UserError):
            raise
        place = f" in line {error.lineno}" if isinstance(error, jinja.TemplateSyntaxError) else ""
        raise UserError(f"the tokenizer's chat template fails{place}: {str(error).rstrip('.')}; fix chat_template in "
                        f"tokenizer_config.json, or remove it") from None


def to_json(value: Any, indent: int | None = None) -> str:
    """The value as JSON; Jinja's own filter would escape < and > for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def refuse(message: str) -> NoReturn:
    """Raise what a template says against the messages."""
    raise UserError(f"the chat template refuses the conversation: {message}; change the messages")
