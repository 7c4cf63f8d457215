"""Instruction following: a decoder continues a prompt.  Only the tokens of the response count in the loss.

    ### Instruction:            Alpaca's template (Taori et al., 2023) without its opening sentence
    Say it in the plural.

    ### Input:                  only if the row has an input
    mouse

    ### Response:
    mice</s>                    these tokens have labels, the end token too; the label of those above is -100

In a conversation (see chat.py) every response has labels, and the next turn follows its end token.
"""
import importlib.util

import numpy as np

from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, generate
from pyllama.quantization import decoded_tree
from pyllama.tasks import chat
from pyllama.tasks.rows import texts_of
from pyllama.tasks.seq2seq import rouge
from pyllama.tasks.task import Task, learned_limit
from pyllama.training import loop
from pyllama.training.examples import IGNORE, Examples

AT_ONCE = 32                                                # prompts in a batch of predict()
FIELDS = ("instruction", "output")
OPTIONAL_FIELDS = ("input",)


def usable(values):
    """{instruction, output} of a row, and its input or the messages of its conversation.  Raises BadRow."""
    return chat.learnable(values) if "messages" in values else texts_of(values, FIELDS, OPTIONAL_FIELDS)


def askable(values):
    """The same without the output.  Raises BadRow."""
    return chat.askable(values) if "messages" in values else texts_of(values, FIELDS[:-1], OPTIONAL_FIELDS)


def prompt(values: dict, template: dict[str, str] = chat.TEMPLATE) -> str:
    """The prompt of a row: the text that the model reads before it answers."""
    return "".join(chat.pieces(values, template))


def prompts(rows, trained):
    """(ids [T], learned [T]) of each row's prompt, with the start token first if there is one.

    learned    bool: the responses in a conversation, each with an end token after it
    """
    template = trained.entry.get("template", chat.TEMPLATE)
    start = trained.tokenizer.bos_id if trained.config.bos_token_id is None else trained.config.bos_token_id
    of_rows = [chat.pieces(row.values, template) for row in rows]
    encoded = iter(trained.tokenizer.encode_batch([text for texts in of_rows for text in texts]))
    for texts in of_rows:
        ids = [np.array([] if start is None else [start], int)]
        learned = [np.zeros(len(ids[0]), bool)]
        for number in range(len(texts)):
            is_response = number % 2 == 1
            ids.append(np.array([*next(encoded), *([end(trained)] if is_response else [])], int))
            learned.append(np.full(len(ids[-1]), is_response))
        yield np.concatenate(ids), np.concatenate(learned)


def end(trained) -> int:
    """The id of the end token, at which generate() stops.  Raises UserError if the model has none."""
    ids = trained.tokenizer.eos_id if trained.config.eos_token_id is None else trained.config.eos_token_id
    if ids is None:
        raise UserError("the model has no end token, so no response would end; use a model with an eos_token_id, such "
                        "as one trained with tokenizer bpe")
    return ids[0] if isinstance(ids, list) else ids


def complete(rows, trained):
    """(ids [T], learned [T]) of prompt and response of each row; learned as in prompts()."""
    responses = trained.tokenizer.encode_batch([row.values["output"] for row in rows])
    for (before, learned), response in zip(prompts(rows, trained), responses, strict=True):
        ids = np.array([*before, *response, end(trained)], int)
        yield ids, np.append(learned, np.ones(len(ids) - len(before), bool))


def fits(rows, trained):
    """For each row: is there room for a token of a response after the prompt?"""
    return [bool(learned[:trained.max_length].any()) for _, learned in complete(rows, trained)]


def answerable(rows, trained):
    """For each row: is there room for a token of its last response?"""
    return [len(ids) < trained.max_length for ids, _ in prompts(rows, trained)]


def examples(rows, trained):
    """ids and labels [T] of prompt and response, truncated on the right at max_length.

    Rows without room for a token of a response are skipped.  Prompt and response are encoded separately, so that the
    prompt has the same tokens as in predict().
    """
    whole = [(ids[:trained.max_length], learned[:trained.max_length]) for ids, learned in complete(rows, trained)]
    return Examples([{"ids": ids, "labels": np.where(learned, ids, IGNORE)} for ids, learned in whole if learned.any()])


def lengths(rows, trained):
    """The number of tokens of prompt and response, with start and end; 0 without a response, as no prompt is cut."""
    known = [row for row in rows if "output" in row.values]
    return [len(ids) for ids, _ in complete(known, trained)] + [0] * (len(rows) - len(known))


def predict(rows, trained, search=None):
    """The continuation of each prompt, up to the end token or max_new_tokens; "" if there is no room for one."""
    settings = GenerationConfig.of(search)
    ids_of_row = [ids.tolist() for ids, _ in prompts(rows, trained)]
    fitting = [i for i, ids in enumerate(ids_of_row) if len(ids) < trained.max_length]
    by_length = sorted(fitting, key=lambda i: len(ids_of_row[i]))
    answers = {}
    for first in range(0, len(by_length), AT_ONCE):
        batch = by_length[first:first + AT_ONCE]
        results = generate(trained.params, trained.config, [ids_of_row[i] for i in batch], trained.tokenizer, settings)
        answers |= {i: result.text for i, result in zip(batch, results, strict=True)}
    return [answers.get(i, "") for i in range(len(rows))]


def notes(rows, trained, search):
    """Notes on prompts that are not answered."""
    lines = []
    if too_long := answerable(rows, trained).count(False):
        lines.append(f"{too_long} of {len(rows)} prompts are not answered: they leave no room for a response in "
                     f"{learned_limit(trained)}")
    return lines


def metrics(answers, rows):
    """The share of exact matches; ROUGE-L's F-measure, without a stemmer, if rouge-score is installed."""
    truth = [row.values["output"] for row in rows]
    scores = rouge(answers, truth, ("rougeL",), stemmed=False) if importlib.util.find_spec("rouge_score") else {}
    return {"exact_match": float(np.mean([a == b for a, b in zip(answers, truth, strict=True)])), **scores,
            "rows": len(rows)}


def perplexity(rows, trained):
    """The perplexity of the responses' tokens, end tokens included: exp of the mean loss in nats."""
    batches = (batch for _, batch in examples(rows, trained).in_turn(AT_ONCE))
    loss, _ = loop.mean_loss(decoded_tree(trained.params), trained.config, batches)
    return {"perplexity": loop.perplexity(loss)}


task = Task(
    name="instruct",
    summary="the response to an instruction",
    fields=FIELDS,
    optional_fields=OPTIONAL_FIELDS,
    unpacked=chat.unpacked,
    containers=tuple(chat.KEYS),
    usable=usable,
    askable=askable,
    head="lm",
    texts=lambda values: [prompt(values), values["output"]],
    fits=fits,
    stored={"template": chat.TEMPLATE},
    examples=examples,
    lengths=lengths,
    predict=predict,
    notes=notes,
    metrics=metrics,
    model_metrics=perplexity,
    metric_names=("perplexity", "rougeL", "exact_match"))
