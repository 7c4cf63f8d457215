"""Golden texts from transformers: what generate() of tiny random models gives, for many settings.

    make golden             # with torch and transformers; writes hf_generate.json

The weights are not stored: make_hf.weight() makes them again from their names.  tests/test_generate_transformers.py
compares.
"""
import json
import tempfile
from pathlib import Path

import numpy as np

from tests.golden.make_hf import BART, GPT2, GROUPED, HERE, weight

EOS, PAD = 2, 0
MODELS = {                                      # name -> architecture, configuration
    "llama": ("LlamaForCausalLM", GROUPED | dict(max_position_embeddings=40)),
    "gpt2": ("GPT2LMHeadModel", GPT2 | dict(n_positions=40)),
    "bart": ("BartForConditionalGeneration", BART | dict(max_position_embeddings=40)),
}
WEIGHTS = {"llama": (1, "b"), "gpt2": (2, "a"), "bart": (1, "b")}      # (scale, seed) whose texts vary
# Of a padded batch, transformers counts padding for these, as if it were text.  So prompts are continued alone.
COUNT_PADDING = {"max_length", "min_length", "no_repeat_ngram_size", "forced_bos_token_id", "begin_suppress_tokens"}
PROMPTS = [[1, 5, 7, 11, 3], [9], [4, 4, 8]]
LONG = dict(max_new_tokens=12)
BEAMS = dict(max_new_tokens=10, num_beams=3)

SETTINGS: dict[str, dict] = {
    "greedy": LONG,
    "greedy, several ends": LONG | dict(eos_token_id=[2, 9, 14]),
    "greedy, max_length": dict(max_length=9),
    "greedy, min_new_tokens": LONG | dict(min_new_tokens=8, eos_token_id=[2, 9, 14]),
    "greedy, min_length": LONG | dict(min_length=9, eos_token_id=[2, 9, 14]),
    "greedy, repetition_penalty": LONG | dict(repetition_penalty=1.7),
    "greedy, no_repeat_ngram_size 1": LONG | dict(no_repeat_ngram_size=1),
    "greedy, no_repeat_ngram_size 2": LONG | dict(no_repeat_ngram_size=2),
    "greedy, no_repeat_ngram_size 3": LONG | dict(no_repeat_ngram_size=3),
    "greedy, bad_words_ids": LONG | dict(bad_words_ids=[[3], [7, 11], [4, 8, 6], [12]]),
    "greedy, suppress_tokens": LONG | dict(suppress_tokens=[3, 5, 8], begin_suppress_tokens=[4, 10]),
    "greedy, forced_eos": LONG | dict(forced_eos_token_id=2),
    "greedy, forced_eos, several": LONG | dict(forced_eos_token_id=[2, 9], eos_token_id=[2, 9]),
    "greedy, forced_bos": LONG | dict(forced_bos_token_id=6, begin_suppress_tokens=[4, 10]),
    "greedy, forced against min_length": dict(max_new_tokens=4, forced_eos_token_id=2, min_new_tokens=6),
    **{f"{K} beams, length_penalty {penalty}": dict(max_new_tokens=10, num_beams=K, length_penalty=penalty)
       for K in (2, 3, 4) for penalty in (-1.0, 0.0, 1.0, 2.5)},
    **{f"3 beams, early_stopping {early}, length_penalty {penalty}":
       BEAMS | dict(early_stopping=early, length_penalty=penalty, eos_token_id=[2, 9, 14])
       for early in (False, True, "never") for penalty in (-1.0, 0.0, 1.0, 2.5)},
    "3 beams, num_return_sequences": BEAMS | dict(num_return_sequences=3),
    "4 beams, 2 returned, several ends": BEAMS | dict(num_beams=4, num_return_sequences=2, eos_token_id=[2, 9, 14]),
    "3 beams, no_repeat_ngram_size": BEAMS | dict(no_repeat_ngram_size=2),
    "3 beams, repetition_penalty": BEAMS | dict(repetition_penalty=1.7),
    "3 beams, bad_words_ids": BEAMS | dict(bad_words_ids=[[3], [7, 11], [4, 8, 6], [12]]),
    "3 beams, min_new_tokens": BEAMS | dict(min_new_tokens=7, eos_token_id=[2, 9, 14]),
    "3 beams, min_length": BEAMS | dict(min_length=9, eos_token_id=[2, 9, 14]),
    "3 beams, forced_eos": BEAMS | dict(forced_eos_token_id=2),
    "3 beams, forced_bos": BEAMS | dict(forced_bos_token_id=6, begin_suppress_tokens=[4, 10]),
    "3 beams, suppress_tokens": BEAMS | dict(suppress_tokens=[3, 5, 8]),
}


def scaled(name: str, key: str, shape) -> np.ndarray:
    """The weights of a golden model."""
    scale, seed = WEIGHTS[name]
    return scale * weight(seed + key, shape) if len(shape) > 1 else weight(key, shape)


def texts(name):
    """What to store of one model: its configuration, its shapes, and (ids, scores) for each of SETTINGS."""
    import torch
    import transformers
    from safetensors.torch import load_file

    architecture, config = MODELS[name]
    family = getattr(transformers, architecture)
    model = family(family.config_class(**config)).double().eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        stored = json.loads(Path(folder, "config.json").read_text())
        shapes = {key: list(a.shape) for key, a in load_file(Path(folder, "model.safetensors")).items()}
    everything = model.state_dict(keep_vars=True)
    for key, shape in shapes.items():
        everything[key].data.copy_(torch.tensor(scaled(name, key, shape)))
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD,
        **(dict(decoder_start_token_id=EOS) if name == "bart" else {}))
    found = {}
    for label, settings in SETTINGS.items():
        batches = [[prompt] for prompt in PROMPTS] if COUNT_PADDING & settings.keys() else [PROMPTS]
        found[label] = [answer for batch in batches for answer in answers(model, batch, settings)]
    return {"config": stored, "shapes": shapes, "texts": found}


def answers(model, prompts, settings):
    """[(ids, score or scores)] of generate(): of a batch padded on the left, of sources on the right."""
    import torch

    T, decoder = max(map(len, prompts)), not model.config.is_encoder_decoder
    pads = [[PAD] * (T - len(prompt)) for prompt in prompts]
    ids = [pad + prompt if decoder else prompt + pad for pad, prompt in zip(pads, prompts, strict=True)]
    masks = [[0] * len(pad) + [1] * (T - len(pad)) for pad in pads]
    mask = masks if decoder else [row[::-1] for row in masks]
    output = model.generate(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False,
                            return_dict_in_generate=True, output_scores=True, **settings)
    first = T if decoder else 1
    ends = settings.get("eos_token_id", [EOS])
    generated = [until(row[first:].tolist(), ends) for row in output.sequences]
    if settings.get("num_beams", 1) > 1:
        return [*zip(generated, output.sequences_scores.tolist(), strict=True)]
    scores = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True).tolist()
    return [(row, each[:len(row)]) for row, each in zip(generated, scores, strict=True)]


def until(ids, ends):
    """The ids up to the first end token."""
    return next((ids[:i + 1] for i, token in enumerate(ids) if token in ends), ids)


def main():
    """Write the texts of all models."""
    (HERE / "hf_generate.json").write_text(json.dumps({name: texts(name) for name in MODELS}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
