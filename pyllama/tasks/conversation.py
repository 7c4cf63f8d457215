"""A conversation with a model: its messages, and the token ids that the model reads before it answers.

    talk = Conversation(model, system="Be brief.")
    talk.ask("What is a noun?")
    ids = talk.prompt(room=100)
    talk.answer("A word for a thing.")
"""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyllama.errors import UserError
from pyllama.pretrained import Model
from pyllama.tasks import chat, finetune, instruct
from pyllama.tasks.rows import Row
from pyllama.text import chat_template, special

PLAIN_STOPS = ("### Instruction:", "### System:")           # a model that never saw an end token writes on


@dataclass
class Conversation:
    """The messages so far, {"role", "content"}, the oldest first.

    model       a Model with a tokenizer that continues text
    system      a text that precedes the conversation; "": none
    forgotten   messages that no longer fitted into the model's context
    """
    model: Model
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    forgotten: int = 0

    def __post_init__(self):
        self.ids_of, self.form, self.stops = form_of(self.model)

    def ask(self, text: str) -> None:
        """Append a question."""
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Append the answer to the last question."""
        self.messages.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        """Forget the messages, but not the system's text."""
        self.messages.clear()

    def whole(self) -> list[dict[str, str]]:
        """The system's text, if there is one, and the messages."""
        return [*[{"role": "system", "content": self.system}] * bool(self.system), *self.messages]

    def prompt(self, room: int) -> list[int]:
        """The ids that the model reads.  The oldest messages are forgotten until `room` tokens are left for an answer.

        The last question is kept, however long it is: of a prompt the model reads the last tokens.
        """
        limit = self.model.config.max_position_embeddings - room
        ids = self.ids_of(self.whole())
        while len(ids) > limit and len(self.messages) > 1:
            self.forgotten += 1
            del self.messages[0]
            while self.messages[0]["role"] == "assistant":          # an answer without its question
                self.forgotten += 1
                del self.messages[0]
            ids = self.ids_of(self.whole())
        return ids


def form_of(model: Model) -> tuple[Callable[[list[dict[str, str]]], list[int]], str, tuple[str, ...]]:
    """(messages -> ids, the name of the form, strings at which an answer ends), as the model was trained to read them.

    Raises UserError if the model does not continue text.
    """
    tokenizer, config = model.require_tokenizer(), model.config
    entry = config.extra.get("task")
    name = entry.get("name") if isinstance(entry, dict) else None
    if config.learns != "next token" or name not in (None, instruct.task.name):
        raise UserError("the model does not continue text, so it cannot chat; use `pyllama predict`, or another model")
    if name == instruct.task.name:
        trained = finetune.trained(config, model.params, tokenizer)
        return (lambda messages: of_task(messages, trained)), "the template that it was fine-tuned with", ()
    if chat_template.template_of(tokenizer) is not None:
        return (lambda messages: of_template(messages, tokenizer)), "the tokenizer's chat template", ()
    return (lambda messages: plain(messages, tokenizer)), "### Instruction and ### Response", PLAIN_STOPS


def of_task(messages: list[dict[str, str]], trained: Any) -> list[int]:
    """The ids of a conversation for a model that was fine-tuned on the task instruct."""
    row = Row("the chat", {"messages": messages, "instruction": messages[-1]["content"]})
    (ids, _), = instruct.prompts([row], trained)
    return ids.tolist()


def of_template(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """The ids of a conversation by the tokenizer's chat template, which writes the special tokens itself."""
    text = chat_template.render(tokenizer, messages)
    return tokenizer.encode(text, allowed_special="all").tolist()


def plain(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """The ids of a conversation in Alpaca's form, for a model that was not trained to chat."""
    return special.prompt(tokenizer, "".join(chat.pieces({"messages": messages}, chat.TEMPLATE)))
