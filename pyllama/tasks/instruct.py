"""An answer to an instruction: a decoder goes on with a prompt, and learns from the response alone.

    ### Instruction:            the form of Alpaca (Taori et al., 2023) without its opening sentence
    Say it in the plural.

    ### Input:                  this part only where the row has an input
    mouse

    ### Response:
    mice</s>                    these tokens are learned, the last with the others; the label of those above is -100
"""
import importlib.util
from types import SimpleNamespace

import numpy as np

from pyllama.beam import SearchConfig
from pyllama.errors import UserError, optional
from pyllama.generation import GenerationConfig, generate
from pyllama.tasks.rows import texts_of
from pyllama.tasks.task import Task
from pyllama.text.readability import words
from pyllama.training import loop
from pyllama.training.examples import IGNORE, Examples

AT_ONCE = 32
FIELDS = ("instruction", "output")
OPTIONAL_FIELDS = ("input",)


def usable(values):
    return texts_of(values, FIELDS, OPTIONAL_FIELDS)


def prompt(values: dict) -> str:
    """What the model reads before it answers."""
    context = f"### Input:\n{values['input']}\n\n" if "input" in values else ""
    return f"### Instruction:\n{values['instruction']}\n\n{context}### Response:\n"


def prompts(rows, trained):
    """ids of each row's prompt, a list, with the token that starts a text, if there is one."""
    start = trained.tokenizer.bos_id if trained.config.bos_token_id is None else trained.config.bos_token_id
    return [[*([] if start is None else [start]), *ids.tolist()]
            for ids in trained.tokenizer.encode_batch([prompt(row.values) for row in rows])]


def end(trained) -> int:
    """The token that generate() stops at."""
    ids = trained.tokenizer.eos_id if trained.config.eos_token_id is None else trained.config.eos_token_id
    if ids is None:
        raise UserError("the model has no token that ends a text, so that no response would end; take a model with an "
                        "eos_token_id, such as one trained with --tokenizer bpe")
    return ids[0] if isinstance(ids, list) else ids


def fits(rows, trained):
    """Is there room for a token of the response behind the prompt?"""
    return [len(ids) < trained.max_length for ids in prompts(rows, trained)]


def examples(rows, trained):
    """Prompt and response, cut on the right at max_length; what has no room for a token of the response is left out.

    Both are encoded for themselves, so that the prompt has the tokens that it has in predict().
    """
    last, rows_of_ids = end(trained), []
    responses = trained.tokenizer.encode_batch([row.values["output"] for row in rows])
    for before, response in zip(prompts(rows, trained), responses, strict=True):
        ids = np.array([*before, *response, last])[:trained.max_length]
        if len(before) < len(ids):
            rows_of_ids.append({"ids": ids, "labels": np.where(np.arange(len(ids)) < len(before), IGNORE, ids)})
    return Examples(rows_of_ids)


def predict(rows, trained, search=None):
    """The likeliest token after the likeliest, up to the end token or max_new_tokens; "" for a prompt without room."""
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
    """The flags of the search that have no effect, and how many prompts are not answered."""
    lines = []
    if search.num_beams > 1:
        lines.append("num_beams has no effect: a response is written token by token, the likeliest each time")
    if left_out := fits(rows, trained).count(False):
        lines.append(f"{left_out} of {len(rows)} prompts leave no room for a response in the {trained.max_length} "
                     f"tokens that the model was trained to read: not answered")
    return lines


def metrics(answers, rows):
    """The share of answers that are the response; ROUGE-L, the F-measure, mean over rows, where rouge-score is
    installed: of words and Chinese characters as they are, for its own tokenizer knows no Chinese."""
    truth, rouge = [row.values["output"] for row in rows], {}
    if importlib.util.find_spec("rouge_score"):
        scorer = optional("rouge_score.rouge_scorer", "ROUGE-L").RougeScorer(
            ["rougeL"], tokenizer=SimpleNamespace(tokenize=words))
        rouge = {"rougeL": float(np.mean([scorer.score(b, a)["rougeL"].fmeasure
                                          for a, b in zip(answers, truth, strict=True)]))}
    return {"exact_match": float(np.mean([a == b for a, b in zip(answers, truth, strict=True)])), **rouge,
            "rows": len(rows)}


def perplexity(rows, trained):
    """exp of the mean loss of a token of the responses, their end included."""
    batches = (batch for _, batch in examples(rows, trained).in_turn(AT_ONCE))
    loss, _ = loop.mean_loss(trained.params, trained.config, batches)
    return {"perplexity": loop.perplexity(loss)}


task = Task(
    name="instruct",
    summary="an answer to an instruction",
    fields=FIELDS,
    optional_fields=OPTIONAL_FIELDS,
    usable=usable,
    head="lm",
    texts=lambda values: [prompt(values), values["output"]],
    fits=fits,
    examples=examples,
    predict=predict,
    notes=notes,
    metrics=metrics,
    model_metrics=perplexity,
    metric_names=("perplexity", "rougeL", "exact_match"))
