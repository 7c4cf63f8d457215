"""Conversations as rows of the task instruct, and the template that writes them as a text.

    {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}, ...]}
    {"conversations": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hi!"}, ...]}

A run keeps its template, so that a later version asks its model in the same words.
"""
from typing import Any

from pyllama.tasks.row_files import BadRow
from pyllama.tasks.rows import text_of

# Of a turn by its role; of the heading of a response; between a response's end token and the next turn.
TEMPLATE = {"system": "### System:\n{}\n\n", "user": "### Instruction:\n{}\n\n", "input": "### Input:\n{}\n\n",
            "response": "### Response:\n", "between": "\n\n"}
KEYS = {"messages": ("role", "content"), "conversations": ("from", "value"), "conversation": ("role", "content")}
ROLES = {"system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
         "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


def unpacked(values: dict) -> dict:
    """The row with its conversation, if it has one, as messages, its last question as instruction, and an output.

    The messages are {role, content}, with the roles system, user and assistant.  Raises BadRow.
    """
    name = next((name for name in KEYS if isinstance(values.get(name), list)), None)
    if name is None or {"instruction", "output"} <= values.keys():
        return {name: value for name, value in values.items() if name != "messages"}
    messages = [message for item in values[name] if (message := turn(item, KEYS[name]))]
    asked = [message["content"] for message in messages if message["role"] == "user"]
    answered = [message["content"] for message in messages if message["role"] == "assistant"]
    return {**values, "messages": messages, "instruction": asked[-1] if asked else "",
            "output": answered[-1] if answered else ""}


def turn(item: Any, keys: tuple[str, str]) -> dict | None:
    """{role, content} of a message under these keys or under role and content; None of an empty system message."""
    if not isinstance(item, dict):
        raise BadRow(f"the message {item!r} is not an object")
    role_key, content_key = keys if keys[0] in item else ("role", "content")
    role, content = str(item.get(role_key)).casefold(), item.get(content_key)
    if role not in ROLES:
        raise BadRow(f"the role of a message is {item.get(role_key)!r}, not system, user or assistant")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):       # parts {type, text}
        content = "\n".join(str(part["text"]) for part in content if "text" in part)
    if role == "system" and not str(content or "").strip():
        return None
    return {"role": ROLES[role], "content": text_of({content_key: content}, content_key)}


def learnable(values: dict) -> dict:
    """{instruction, messages, output} of a conversation: it ends before its last response.  Raises BadRow."""
    messages = values["messages"]
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if not messages:
        raise BadRow("no message is the assistant's, so there is no response to learn")
    return {"instruction": values["instruction"], "messages": messages[:-1], "output": messages[-1]["content"]}


def askable(values: dict) -> dict:
    """{instruction, messages} of a conversation, without a response at its end.  Raises BadRow."""
    messages = values["messages"]
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise BadRow("no message asks for a response")
    return {"instruction": values["instruction"], "messages": messages}


def pieces(values: dict, template: dict[str, str]) -> list[str]:
    """The text before the response of a row, cut at the responses in it: prompt, response, prompt, ..., prompt."""
    turns = [(message["role"], message["content"]) for message in values.get("messages", ())]
    if not turns:
        turns = [("user", values["instruction"]), *([("input", values["input"])] if "input" in values else [])]
    texts, text = [], ""
    for role, content in turns:
        if role == "assistant":
            texts += [text + template["response"], content]
            text = template["between"]
        else:
            text += template[role].format(content)
    return [*texts, text + template["response"]]
