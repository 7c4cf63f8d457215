"""Instruction following: a decoder continues a prompt.  Only the tokens of the response count in the loss.

    ### Instruction:            Alpaca's template (Taori et al., 2023) without its opening sentence
    Say it in the plural.

    ### Input:                  only if the row has an input
    mouse

    ### Response:
    mice</s>                    these tokens have labels, the end token too; the label of those above is -100
"""
import importlib.util

import numpy as np

from pyllama.beam import SearchConfig
from pyllama.errors import UserError
from pyllama.generation import GenerationConfig, generate
from pyllama.tasks.rows import texts_of
from pyllama.tasks.seq2seq import rouge
from pyllama.tasks.task import Task, learned_limit
from pyllama.training import loop
from pyllama.training.examples import IGNORE, Examples

AT_ONCE = 32                                                # prompts in a batch of predict()
FIELDS = ("instruction", "output")
OPTIONAL_FIELDS = ("input",)


def usable(values):
    """{instruction, output} of a row, and its input if there is one.  Raises BadRow."""
    return texts_of(values, FIELDS, OPTIONAL_FIELDS)


def prompt(values: dict) -> str:
    """The prompt of a row: the text that the model reads before it answers."""
    context = f"### Input:\n{values['input']}\n\n" if "input" in values else ""
    return f"### Instruction:\n{values['instruction']}\n\n{context}### Response:\n"


def prompts(rows, trained):
    """The ids of each row's prompt, a list of integers, with the start token first if there is one."""
    start = trained.tokenizer.bos_id if trained.config.bos_token_id is None else trained.config.bos_token_id
    return [[*([] if start is None else [start]), *ids.tolist()]
            for ids in trained.tokenizer.encode_batch([prompt(row.values) for row in rows])]


def end(trained) -> int:
    """The id of the end token, at which generate() stops.  Raises UserError if the model has none."""
    ids = trained.tokenizer.eos_id if trained.config.eos_token_id is None else trained.config.eos_token_id
    if ids is None:
        raise UserError("the model has no end token, so no response would end; use a model with an eos_token_id, such "
                        "as one trained with tokenizer bpe")
    return ids[0] if isinstance(ids, list) else ids


def fits(rows, trained):
    """For each row: is there room for a token of the response after the prompt?"""
    return [len(ids) < trained.max_length for ids in prompts(rows, trained)]


def examples(rows, trained):
    """ids and labels [T] of prompt and response, truncated on the right at max_length.

    Rows without room for a token of the response are skipped.  Prompt and response are encoded separately, so that the
    prompt has the same tokens as in predict().
    """
    last, rows_of_ids = end(trained), []
    responses = trained.tokenizer.encode_batch([row.values["output"] for row in rows])
    for before, response in zip(prompts(rows, trained), responses, strict=True):
        ids = np.array([*before, *response, last])[:trained.max_length]
        if len(before) < len(ids):
            rows_of_ids.append({"ids": ids, "labels": np.where(np.arange(len(ids)) < len(before), IGNORE, ids)})
    return Examples(rows_of_ids)


def lengths(rows, trained):
    """The number of tokens of prompt and response, with start and end; 0 without a response, as no prompt is cut."""
    responses = trained.tokenizer.encode_batch([row.values.get("output", "") for row in rows])
    return [len(before) + len(response) + 1 if "output" in row.values else 0
            for row, before, response in zip(rows, prompts(rows, trained), responses, strict=True)]


def predict(rows, trained, search=None):
    """The greedy continuation of each prompt, up to the end token or max_new_tokens; "" if there is no room for one."""
    settings = GenerationConfig(max_new_tokens=(search or SearchConfig()).max_new_tokens)
    ids_of_row = prompts(rows, trained)
    answerable = [i for i, ids in enumerate(ids_of_row) if len(ids) < trained.max_length]
    by_length = sorted(answerable, key=lambda i: len(ids_of_row[i]))
    answers = {}
    for first in range(0, len(by_length), AT_ONCE):
        batch = by_length[first:first + AT_ONCE]
        results = generate(trained.params, trained.config, [ids_of_row[i] for i in batch], trained.tokenizer, settings)
        answers |= {i: result.text for i, result in zip(batch, results, strict=True)}
    return [answers.get(i, "") for i in range(len(rows))]


def notes(rows, trained, search):
    """Notes on flags of the search without effect, and on prompts that are not answered."""
    lines = []
    if search.num_beams > 1:
        lines.append("num_beams has no effect: responses are decoded greedily")
    if too_long := fits(rows, trained).count(False):
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
    loss, _ = loop.mean_loss(trained.params, trained.config, batches)
    return {"perplexity": loop.perplexity(loss)}


task = Task(
    name="instruct",
    summary="the response to an instruction",
    fields=FIELDS,
    optional_fields=OPTIONAL_FIELDS,
    usable=usable,
    head="lm",
    texts=lambda values: [prompt(values), values["output"]],
    fits=fits,
    examples=examples,
    lengths=lengths,
    predict=predict,
    notes=notes,
    metrics=metrics,
    model_metrics=perplexity,
    metric_names=("perplexity", "rougeL", "exact_match"))
