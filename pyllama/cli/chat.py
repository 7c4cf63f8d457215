"""The command chat: questions on a terminal or from a pipe, answers token by token."""
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pyllama.cli.generate import chosen
from pyllama.cli.loading import Precision, load
from pyllama.cli.output import emit, note
from pyllama.errors import UserError, counted
from pyllama.files import rewrite
from pyllama.generation import GenerationConfig, Rules, generate
from pyllama.generation.kept import Kept
from pyllama.tasks.conversation import Conversation

HELP = """/reset        forget the conversation
/save FILE    write the conversation as a line of JSON, which `pyllama finetune --task instruct` reads
/help         show this list
/exit         end the chat, as Ctrl-D does
Ctrl-C stops an answer."""
ANSWER = 200                                                # tokens of an answer, unless a flag says otherwise
ROOM = 4                                                    # of the context at most a fourth waits for the answer


def chat(model: Path, /, options: Annotated[dict[str, Any], GenerationConfig, Rules], system: str = "",
         tokenizer: Path | None = None, dtype: Precision = "float32") -> int:
    """Talk with a model that was trained to answer, or with any model that continues text.

    The conversation is written by the tokenizer's chat template, or by the template of the task instruct.  /help lists
    the commands of the chat.  From a pipe, each line is a question, and only the answers are printed.

    Args:
        model: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        system: a text that precedes the conversation, such as "Be brief."
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
        dtype: precision of the weights; with bfloat16 the matrices are rounded to it, and activations are float32
    """
    if options.get("num_return_sequences", 1) > 1:
        raise UserError("a chat has one answer to each question; remove num_return_sequences")
    writer, _ = load(model, tokenizer, dtype, say=note)
    talk = Conversation(writer, system)
    stops = {"stop_strings": (*options.get("stop_strings", ()), *talk.stops)} if talk.stops else {}
    writer.config, settings, rules = chosen(writer, {"max_new_tokens": ANSWER, **options, **stops,
                                                     "num_return_sequences": 1})
    terminal = sys.stdin.isatty()
    if terminal:
        note(f"written as: {talk.form}.  /help lists the commands; Ctrl-D ends the chat.")
    kept = Kept()
    for line in questions(terminal):
        if line.startswith("/"):
            if line.split()[0] == "/exit":
                break
            command(line, talk)
        elif line.strip():
            reply(talk, line, settings, rules, kept, terminal)
    return 0


def questions(terminal: bool) -> Iterator[str]:
    """The lines that a person types, until the input ends.  Ctrl-C at the prompt clears the line."""
    if not terminal:
        yield from (decoded(raw, number).rstrip("\r\n") for number, raw in enumerate(sys.stdin.buffer, 1))
        return
    with contextlib.suppress(ImportError):                  # arrow keys and history, where Python has them
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ")
            line.encode()
        except UnicodeError:
            note("that line is not UTF-8; set the terminal to UTF-8, and ask again")
            continue
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\nCtrl-D or /exit ends the chat")
            continue
        yield line


def decoded(raw: bytes, number: int) -> str:
    """A line of standard input.  Raises UserError if it is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"line {number} of standard input is not UTF-8; convert it with iconv") from None


def command(line: str, talk: Conversation) -> None:
    """Run a line that begins with a slash."""
    word, _, rest = line.partition(" ")
    if word == "/reset":
        talk.reset()
        note("the conversation is forgotten")
    elif word == "/save":
        save(rest.strip(), talk)
    elif word == "/help":
        note(HELP)
    else:
        note(f"there is no command {word}; /help lists the commands")


def save(name: str, talk: Conversation) -> None:
    """Write the conversation into a new file."""
    if not name:
        note("/save needs the name of a file, such as /save talk.jsonl")
        return
    if not talk.messages:
        note("there is nothing to save yet; ask a question first")
        return
    content = json.dumps({"messages": talk.whole()}, ensure_ascii=False) + "\n"
    try:
        if Path(name).exists():
            note(f"{name} exists; give another name")
            return
        rewrite(name, [content.encode()])
    except (OSError, ValueError) as error:                  # ValueError: a zero character
        note(f"cannot write {name}: {getattr(error, 'strerror', None) or error}; give another name")
    else:
        note(f"{name} has {counted(len(talk.whole()), 'message')}")


def reply(talk: Conversation, question: str, settings: GenerationConfig, rules: Rules, kept: Kept,
          terminal: bool) -> None:
    """Answer a question, token by token.  Ctrl-C ends the answer; what was said so far stays in the conversation."""
    talk.ask(question)
    context = talk.model.config.max_position_embeddings
    forgotten = talk.forgotten
    ids = talk.prompt(min(settings.max_new_tokens, context // ROOM))
    if talk.forgotten > forgotten:
        note(f"the context of {context} tokens is full: {counted(talk.forgotten - forgotten, 'message')} at the "
             f"beginning forgotten")
    pieces: list[str] = []
    tokens, stopped, start = 0, False, time.perf_counter()

    def show(row: int, token: int, piece: str) -> None:
        nonlocal tokens
        tokens += 1
        pieces.append(piece if tokens > 1 else piece.lstrip())
        emit(pieces[-1], end="")

    try:
        generate(talk.model.params, talk.model.config, [ids], talk.model.tokenizer, settings, show, rules, kept)
    except KeyboardInterrupt:
        if not terminal:
            raise
        stopped = True
    emit("")
    talk.answer("".join(pieces).rstrip())
    if terminal:
        seconds = time.perf_counter() - start
        note(f"[{counted(tokens, 'token')}, {tokens / seconds:,.0f} tokens/s{', stopped' if stopped else ''}]")
