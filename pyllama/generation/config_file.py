"""Read generation_config.json or, in an older folder, the same values in config.json.

    stored = read(folder, config.extra)
    plan = understood(stored, config)
    settings, rules = plan.settings(options)
"""
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pyllama import files
from pyllama.errors import UserError, shown
from pyllama.generation.rules import Rules
from pyllama.generation.settings import GenerationConfig

FILE = "generation_config.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# What the file may hold for our fields.
WHOLE, NUMBER, ID, ID_OR_IDS = "a whole number from 0 on", "a number", "an id", "an id or a list of ids"
TEXTS, WORDS = "a text or a list of texts", "a list of lists of ids"
KINDS: dict[str, str] = {
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "max_length", "min_length", "top_k", "num_beams",
                     "num_return_sequences", "no_repeat_ngram_size"), WHOLE),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"), NUMBER),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "forced_bos_token_id"), ID),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"), ID_OR_IDS),
    "stop_strings": TEXTS, "bad_words_ids": WORDS, "do_sample": "true or false",
    "early_stopping": 'true, false or "never"'}
IDS = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
OF_RULES = {f.name for f in fields(Rules)}
# Settings that would change the texts but are not supported, with the value at which they do not.
UNSUPPORTED: dict[str, Any] = {
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "diversity_penalty": 0.0, "num_beam_groups": 1, "penalty_alpha": 0.0,
    "sequence_bias": None, "exponential_decay_length_penalty": None, "guidance_scale": 1.0, "watermarking_config": None,
    "constraints": None, "force_words_ids": None, "forced_decoder_ids": None, "max_time": None, "token_healing": False,
    "dola_layers": None, "renormalize_logits": False}


@dataclass(frozen=True)
class Plan:
    """The settings and rules in a model's files.

    config      the model's configuration, with the tokens that start and end a text
    rules       which tokens may come next
    options     the fields of the settings that the files set
    notes       on values that are not supported
    """
    config: Any
    rules: Rules
    options: dict[str, Any]
    notes: tuple[str, ...]

    def settings(self, chosen: Mapping[str, Any],
                 base: Mapping[str, Any] | None = None) -> tuple[GenerationConfig, Rules]:
        """(settings, rules) with the fields that a person chose; the files decide the others, and base what is left.

        Raises UserError if a value does not fit.
        """
        V = self.config.vocab_size
        chosen = {name: value if value is None or name not in KINDS else checked(name, value, V, in_file=False)
                  for name, value in chosen.items()}
        own = {name: value for name, value in chosen.items() if name not in OF_RULES}
        rules = replace(self.rules, **{name: value for name, value in chosen.items() if name in OF_RULES})
        if "max_new_tokens" in own or "max_new_tokens" in self.options:
            rules = replace(rules, max_length=None)
        stored = dict(self.options)
        silent = not any(name in stored for name in ("do_sample", *SAMPLING))
        stored = {**((base or {}) if silent else {"do_sample": bool(base)}), **stored}
        if own.get("do_sample"):
            stored.pop("num_beams", None)                   # a search does not draw
        beams = own.get("num_beams", stored.get("num_beams", 1)) > 1
        if beams:
            stored["do_sample"] = False
        if not own.get("do_sample", stored.get("do_sample", False)):
            without = SAMPLING if beams else (*SAMPLING, "num_return_sequences")
            stored = {name: value for name, value in stored.items() if name not in without}
        elif self.options.get("do_sample"):
            stored = {"top_k": 50, **stored}                # transformers' own default
        settings = GenerationConfig(**{**stored, **own})
        if "min_new_tokens" not in chosen and not rules.has_room(settings.max_new_tokens):
            rules = replace(rules, min_new_tokens=settings.max_new_tokens)      # the files' gives way
        rules.require_room(settings.max_new_tokens)
        return settings, rules


def read(folder: Path, older: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a folder's generation_config.json; without one, those that an older config.json holds.

    Raises UserError if the file is not a JSON object.
    """
    path = folder / FILE
    if not path.exists():
        return {name: older[name] for name in (*KINDS, *UNSUPPORTED) if name in older and name not in IDS}
    values = files.read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not an object; write {{\"do_sample\": true}}, say, or delete it")
    return values


def understood(stored: Mapping[str, Any], config: Any) -> Plan:
    """The Plan of a model from the values of its generation_config.json.

    Raises UserError if a value is of the wrong type, or an id is outside the vocabulary.
    """
    values = {name: checked(name, value, config.vocab_size) for name, value in stored.items()
              if name in KINDS and value is not None}
    ids = {name: values.pop(name) for name in IDS if name in values}
    rules = {name: value for name, value in values.items() if name in OF_RULES}
    options = {name: value for name, value in values.items() if name not in OF_RULES}
    ignored = ["do_sample with num_beams"] * (values.get("do_sample", False) and values.get("num_beams", 1) > 1)
    ignored += [name for name, without in UNSUPPORTED.items() if stored.get(name) not in (None, without)]
    notes = (f"{FILE}: {', '.join(ignored)} {'are' if ignored[1:] else 'is'} not supported; transformers' texts may "
             f"differ",)
    known = {name: value for name, value in ids.items() if name in config.names()}
    return Plan(replace(config, **known), Rules(**rules), options, notes if ignored else ())


def checked(name: str, value: Any, vocab_size: int, in_file: bool = True, kind: str = "") -> Any:
    """The value of a field as our settings take it.  Raises UserError if it is not of its kind.

    in_file     does the model's file set it, or a person?
    kind        "": the field's own
    """
    kind = kind or KINDS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number and not abs(value) > sys.float_info.max             # JSON has whole numbers of any length
    listed = isinstance(value, list | tuple)
    if kind == WHOLE and number and value >= 0 and float(value).is_integer():
        return int(value)
    if kind == NUMBER and number:
        return float(value)
    if kind in (ID, ID_OR_IDS) and isinstance(value, int) and number:
        if not 0 <= value < vocab_size:
            is_outside = f"{FILE} has {name} = {value}" if in_file else f"{name} is {value}"
            raise UserError(f"{is_outside}, but the model's vocabulary has {vocab_size} tokens; "
                            f"{'write' if in_file else 'give'} an id from 0 to {vocab_size - 1}")
        return [value] if name.endswith("suppress_tokens") and kind == ID_OR_IDS else value
    if kind == ID_OR_IDS and listed:
        return [checked(name, i, vocab_size, in_file, ID) for i in value]
    if kind == WORDS and listed and all(isinstance(ids, list | tuple) and ids for ids in value):
        return [[checked(name, i, vocab_size, in_file, ID) for i in ids] for ids in value]
    if kind == TEXTS and isinstance(value, str):
        return (value,)
    if kind == TEXTS and listed and all(isinstance(stop, str) for stop in value):
        return tuple(value)
    if isinstance(value, bool) and name in ("do_sample", "early_stopping"):
        return value
    if name == "early_stopping" and value == "never":
        return value
    raise UserError(f"{FILE} has {name} = {shown(value)}, but it must be {kind}; fix it or remove it" if in_file else
                    f"{name} is {shown(value)}; it must be {kind}")
