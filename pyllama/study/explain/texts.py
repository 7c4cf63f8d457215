"""The texts of a recorded step, such as source and target; the gradient at each token; attention maps by name."""
from itertools import takewhile

import numpy as np

from pyllama.study.explain.cells import block, numbers
from pyllama.study.explain.formulas import attention_maps, double
from pyllama.study.explain.losses import token
from pyllama.study.explain.recording import Call, Recording
from pyllama.study.explain.subject import Subject

MAP_ROOM = 120_000                              # numbers of all attention maps together


def embeddings(recording: Recording) -> list[int | None]:
    """For each call the embedding of tokens that its first input leads back to; None: it leads to none.

    Embeddings of tokens come before those of positions in a sum, so the rows of the call are those of these tokens.
    """
    found: list[int | None] = []
    for i, call in enumerate(recording.calls):
        if any(source.kind == "output" for source in call.reads[0]):
            found.append(found[before(call, 0)])
        else:
            found.append(i if call.op.name == "embedding" else None)
    return found


def before(call: Call, k: int) -> int:
    """The first call that an input of this one reads."""
    return next(source.call for source in call.reads[k] if source.kind == "output")


def texts(subject: Subject, recording: Recording) -> list[dict]:
    """Each text that the model reads: its tokens, and ‖∂loss/∂x‖ of each at the embedding.

    last        of a single text, the last call with a row for each token, and ‖∂loss/∂y‖ of each there
    """
    of, made = embeddings(recording), []
    used = of_tokens(of)
    for embedding in used:
        call = recording.calls[embedding]
        ids = call.inputs[0][0]
        last = next((i for i in range(len(of) - 1, -1, -1) if of[i] == embedding and len(used) == 1
                     and has_rows(recording.calls[i], len(ids))), None)
        made.append({"call": embedding, "tokens": [token(subject, i) for i in ids], "gradients": row_norms(call),
                     "last": last, "lastGradients": None if last is None else row_norms(recording.calls[last])})
    return made


def of_tokens(of: list[int | None]) -> list[int]:
    """The embeddings of tokens: those of positions and types are not the first that any call leads back to."""
    return [i for i, one in enumerate(of) if one == i and of.count(i) > 1]


def has_rows(call: Call, count: int) -> bool:
    """Has the call's first output a row for each of so many tokens, and a gradient?"""
    return bool(call.dys) and call.outputs[0].shape[:-1] == (1, count)


def row_norms(call: Call) -> list:
    """‖∂loss/∂y_t‖ of the rows of a call's first output [1 T D]."""
    return numbers(np.linalg.norm(double(call.dys[0])[0], axis=-1), 4)


def attention(recording: Recording) -> list[dict]:
    """The weights p of each attention and head, and their gradients dp = ∂loss/∂p: a block of at most 64 x 64."""
    of = embeddings(recording)
    number: dict[int | None, int] = {embedding: i for i, embedding in enumerate(of_tokens(of))}
    calls = [(i, call) for i, call in enumerate(recording.calls) if call.op.name == "attention" and call.dys]
    heads = sum(call.inputs[0].shape[1] * call.inputs[0].shape[2] for _, call in calls)
    most = int(np.clip((MAP_ROOM / max(1, heads)) ** 0.5, 4, 64))
    return [one | {"name": module(call, recording), "queries": number[of[i]], "keys": number[of[before(call, 1)]]}
            for i, call in calls for one in maps(i, call, most)]


def module(call: Call, recording: Recording) -> str:
    """The name of the module that an attention belongs to: the common part of the names of its projections."""
    levels = zip(*(nearest(call, k, recording).split(".")[:-2] for k in range(3)), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len({*names}) == 1, levels))


def nearest(call: Call, k: int, recording: Recording) -> str:
    """The name of the parameter that an input was last computed with."""
    while True:
        call, k = recording.calls[before(call, k)], 0
        named = [source.name for sources in call.reads for source in sources if source.kind == "parameter"]
        if named:
            return named[0]


def maps(number_of_call: int, call: Call, most: int) -> list[dict]:
    """A map for each head of the first sequence."""
    _, G, R, T, _ = call.inputs[0].shape
    p, dp, _ = (x[0].reshape(G * R, T, -1) for x in attention_maps(call))       # p is 0 where a key is not visible
    shown = block(np.abs(p * dp).max(axis=0), most)
    about = {"call": number_of_call, "shape": list(p.shape[1:]), "rows": shown.rows.tolist(),
             "columns": shown.columns.tolist()}
    return [about | {"head": head, "p": numbers(shown.of(p[head]), 3), "dp": numbers(shown.of(dp[head]), 3)}
            for head in range(G * R)]
