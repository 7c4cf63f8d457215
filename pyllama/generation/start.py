"""What a model reads before the first new token: prompts, or the sources of an encoder-decoder."""
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyllama.errors import UserError, counted
from pyllama.generation import prompt_cache
from pyllama.generation.rules import Rules, listed
from pyllama.generation.session import encoded, open_session
from pyllama.generation.settings import GenerationConfig
from pyllama.generation.window import Window
from pyllama.text.tokenizer import Tokenizer


class Start(NamedTuple):
    """One prompt, ready to be continued."""
    ids: tuple[int, ...]                    # the prompt; of an encoder-decoder the start token
    source: tuple[int, ...]                 # what the encoder reads
    room: int                               # how many tokens may follow
    ends: list[int]                         # the ids that end a text


def is_encoder_decoder(config: Any) -> bool:
    """Does the model write a target for a source?"""
    return config.head == "seq2seq"


def starts_of(config: Any, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer | None, settings: GenerationConfig,
              rules: Rules) -> list[Start]:
    """A Start for each of the prompts.

    Raises UserError if a prompt has max_length tokens, is empty without a start token, or cannot end.
    """
    sequences = [tuple(int(i) for i in prompt) for prompt in prompts]
    ends = listed(settings.eos_token_id) or listed(config.eos_token_id)
    if is_encoder_decoder(config):
        return targets(config, sequences, ends, settings, rules)
    ends = ends or listed(tokenizer.eos_id if tokenizer else None)
    first = tokenizer.bos_id if tokenizer and config.bos_token_id is None else config.bos_token_id
    starts = []
    for ids in sequences:
        ids = ids or tuple(listed(first))
        if not ids:
            raise UserError("the prompt is empty and the model has no bos_token_id to start with; give a prompt")
        room = settings.max_new_tokens if rules.max_length is None else rules.max_length - len(ids)
        if room < 0 or (room == 0 and rules.max_length is not None):
            raise UserError(f"the prompt has {counted(len(ids), 'token')}, but it and its continuation have a "
                            f"max_length of {rules.max_length}; set max_new_tokens")
        starts.append(Start(ids, (), room, ends))
    return starts


def targets(config: Any, sources: Sequence[tuple[int, ...]], ends: list[int], settings: GenerationConfig,
            rules: Rules) -> list[Start]:
    """A Start for each of the sources.  A target is at most max_position_embeddings long if positions are learned."""
    if not ends:
        raise UserError("the model has no eos_token_id, so no target would end; set it in config.json")
    if not all(sources):
        raise UserError("a source is empty; give it some text")
    room = settings.max_new_tokens if rules.max_length is None else max(1, rules.max_length - 1)
    if config.positions == "learned":
        context, longest = config.max_position_embeddings, max(map(len, sources), default=0)
        if longest > context:
            raise UserError(f"the prompt has {longest} tokens, but the model's context (max_position_embeddings) is "
                            f"{context}; shorten it")
        room = min(room, context)
    return [Start((config.decoder_start_token_id,), source, room, ends) for source in sources]


def read(params: dict, config: Any, starts: Sequence[Start], cached: str | None = None,
         cache: str = "full") -> tuple[Window, Any]:
    """(a window with a sequence for each start, the scores [B V] of their next tokens).

    Starts that are the same are read once.

    cached      the file of a prompt cache, which has one prompt of a decoder, within the context; else UserError
    cache       how keys and values are kept: see session.open_session
    """
    different = [*dict.fromkeys((start.ids, start.source) for start in starts)]
    room = max(len(start.ids) + start.room for start in starts)
    memory, context = None, None
    if is_encoder_decoder(config):
        memory = encoded(params, config, [source for _, source in different])
    else:
        context = config.max_position_embeddings
        room = min(room, context)
    window = Window(open_session(params, config, len(different), room, memory, cache), context)
    if cached is None:
        scores = window.extend([[*ids] for ids, _ in different])
    else:
        check_cacheable(different, context)
        scores = prompt_cache.extend(window, [*different[0][0]], cached, params, config)
    rows = [different.index((start.ids, start.source)) for start in starts]
    if rows != [*range(len(different))]:
        scores = scores[rows]
        window.keep(rows)
    return window, scores


def check_cacheable(different: Sequence[tuple], context: int | None) -> None:
    """Raise UserError unless these are one prompt of a decoder, within its context."""
    if context is None:
        raise UserError("prompt_cache keeps the prompt of a decoder, and this is an encoder-decoder; remove it")
    if len(different) > 1:
        raise UserError(f"prompt_cache keeps one prompt, but there are {len(different)}; give one, or remove it")
    if (length := len(different[0][0])) > context:
        raise UserError(f"the prompt has {length} tokens and the context {context}, so its keys and values cannot be "
                        f"kept; shorten it, or remove prompt_cache")
