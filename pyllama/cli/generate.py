"""The command generate."""
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pyllama import params
from pyllama.cli.loading import Device, Precision, load
from pyllama.cli.output import emit, note
from pyllama.cli.sample import BASE
from pyllama.device import like as on
from pyllama.errors import UserError, with_article
from pyllama.generation import GenerationConfig, Rules, config_file, startable, stream
from pyllama.generation import generate as generate_batch
from pyllama.quantization import decoded_tree
from pyllama.text import corpus, special


def generate(model: Path, options: Annotated[dict[str, Any], GenerationConfig, Rules], prompt: str = "",
             tokenizer: Path | None = None, device: Device = "cpu", dtype: Precision = "float32",
             allow_nan: bool = False) -> int:
    """Continue a text with a trained model.

    Tokens are sampled with temperature 0.8 from the 200 most likely ones, unless the model's generation_config.json or
    a flag says otherwise.  --temperature 0 takes the most likely token.

    Args:
        model: a run, a checkpoint, a Hugging Face folder, a GGUF or a llama2.c file
        prompt: text to continue; special tokens in it, such as <|im_start|>, count as such; FILE:path reads it from a
            file
        tokenizer: a tokenizer.json or llama2.c tokenizer to use instead of the model's
        device: the CPU, or a GPU through CuPy
        dtype: precision of the weights; with bfloat16 the matrices are rounded to it, and activations are float32
        allow_nan: accept weights that are NaN or infinite
    """
    like = on(device, dtype)
    writer, tokenizer_of_model = load(model, tokenizer, dtype, say=note, allow_nan=allow_nan)
    if writer.config.learns != "next token":
        use = "use `pyllama predict`" if "task" in writer.config.extra else "train it on a task with `pyllama finetune`"
        raise UserError(f"{model} is {with_article(writer.config.TYPE)} that does not continue text; {use}")
    config, settings, rules = chosen(writer, options)
    tree = writer.params
    if device != "cpu":
        tree = params.rebuild(tree, (np.asarray(a, like=like) for _, a in params.leaves(decoded_tree(tree))))
    if prompt.startswith("FILE:"):
        prompt = text_in(prompt.removeprefix("FILE:"))
    prompt = startable(prompt, tokenizer_of_model)
    ids = special.prompt(tokenizer_of_model, prompt)
    if len(ids) > config.max_position_embeddings:
        note(f"the prompt has {len(ids)} tokens; the model reads the last {config.max_position_embeddings}")
    if settings.num_return_sequences == 1:
        emit(prompt, end="")
        try:
            for piece in stream(tree, config, ids, tokenizer_of_model, settings, rules):
                emit(piece, end="")
        finally:                                            # a message begins on a line of its own
            emit("")
    else:
        for result in generate_batch(tree, config, [ids], tokenizer_of_model, settings, rules=rules):
            emit(f"{prompt}{result.text}\n{'-' * 15}")
    return 0


def text_in(name: str) -> str:
    """The text of a file, or of standard input.  Raises UserError if it is not one file."""
    if name != "-" and (Path(name).is_dir() or not Path(name).exists()):
        what = "is a folder" if Path(name).is_dir() else "does not exist"
        raise UserError(f"the prompt FILE:{name} is to be read from {name}, which {what}; give the name of one file")
    return "".join(text for _, text in corpus.documents(name))


def chosen(writer, options: dict[str, Any]):
    """(config, settings, rules) of a generation: what the flags say, or else the model's files, or else BASE."""
    plan = config_file.understood(writer.generation_config, writer.config)
    for sentence in plan.notes:
        note(sentence)
    beams = options.get("num_beams", plan.options.get("num_beams", 1)) > 1
    several = options.get("num_return_sequences", 1) > 1 and not beams
    if several or any(options.get(name) for name in config_file.SAMPLING):
        options = {"do_sample": True, **options}
    return plan.config, *plan.settings(options, BASE)
