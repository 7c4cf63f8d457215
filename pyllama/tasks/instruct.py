"""An answer to an instruction: a decoder goes on with a prompt, and learns from the response alone.

    ### Instruction:            the form of Alpaca (Taori et al., 2023) without its opening sentence
    Say it in the plural.

    ### Input:                  this part only where the row has an input
    mouse

    ### Response:
    mice</s>                    these tokens are learnt, the last with the others; the label of those above is -100
"""
import importlib.util
import sys
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
FIELDS, ALSO = ("instruction", "output"), ("input",)


def usable(values):
    return texts_of(values, FIELDS, ALSO)


def prompt(values: dict) -> str:
    """What the model reads before it answers."""
    given = f"### Input:\n{values['input']}\n\n" if "input" in values else ""
    return f"### Instruction:\n{values['instruction']}\n\n{given}### Response:\n"


def prompts(rows, trained):
    """ids of each row's prompt, a list, with the token that starts a text, if there is one."""
    start = trained.tokenizer.bos_id if trained.config.bos_token_id is None else trained.config.bos_token_id
    return [[*([] if start is None else [start]), *ids.tolist()]
            for ids in trained.tokenizer.encode_batch([prompt(row.values) for row in rows])]


def end(trained) -> int:
    """The token that generate() stops at."""
    found = trained.tokenizer.eos_id if trained.config.eos_token_id is None else trained.config.eos_token_id
    if found is None:
        raise UserError("the model has no token that ends a text, so that no response would end; take a model with an "
                        "eos_token_id, such as one trained with --tokenizer bpe")
    return found[0] if isinstance(found, list) else found


def fits(rows, trained):
    """Is there room for a token of the response behind the prompt?"""
    return [len(ids) < trained.max_length for ids in prompts(rows, trained)]


def examples(rows, trained):
    """Prompt and response, cut on the right at max_length; what has no room for a token of the response is left out.

    Both are encoded for themselves, so that the prompt has the tokens that it has in predict().
    """
    last, made = end(trained), []
    responses = trained.tokenizer.encode_batch([row.values["output"] for row in rows])
    for before, response in zip(prompts(rows, trained), responses, strict=True):
        ids = np.array([*before, *response, last])[:trained.max_length]
        if len(before) < len(ids):
            made.append({"ids": ids, "labels": np.where(np.arange(len(ids)) < len(before), IGNORE, ids)})
    return Examples(made)


def predict(rows, trained, search=None):
    """The likeliest token after the likeliest, up to the end token or max_new_tokens; "" for a prompt without room."""
    search = search or SearchConfig()
    if search.num_beams > 1:
        print("num_beams has no effect: a response is written token by token, the likeliest each time", file=sys.stderr)
    settings, asked, answers = GenerationConfig(max_new_tokens=search.max_new_tokens), prompts(rows, trained), {}
    order = sorted((i for i, ids in enumerate(asked) if len(ids) < trained.max_length), key=lambda i: len(asked[i]))
    for first in range(0, len(order), AT_ONCE):
        some = order[first:first + AT_ONCE]
        results = generate(trained.params, trained.config, [asked[i] for i in some], trained.tokenizer, settings)
        answers |= {i: result.text for i, result in zip(some, results, strict=True)}
    if few := len(rows) - len(order):                       # told where the answers do not go
        print(f"{few} of {len(rows)} prompts leave no room for a response in the {trained.max_length} tokens that the "
              f"model was trained to read: not answered", file=sys.stderr)
    return [answers.get(i, "") for i in range(len(rows))]


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


task = Task(name="instruct", about="an answer to an instruction", fields=FIELDS, also=ALSO, usable=usable, head="lm",
            texts=lambda values: [prompt(values), values["output"]], examples=examples, fits=fits, predict=predict,
            metrics=metrics, of_model=perplexity, measures=("perplexity", "rougeL", "exact_match"))
