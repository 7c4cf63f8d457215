"""Text generation: the settings, the choice of the next token, the loop around it, the text up to a stop string.

    results = generate(params, config, prompts, tokenizer, GenerationConfig(max_new_tokens=40))
    for piece in stream(params, config, prompt, tokenizer): print(piece, end="")
"""
from pyllama.generation.loop import Result, generate, startable, stream
from pyllama.generation.settings import GenerationConfig, Rules

__all__ = ["GenerationConfig", "Result", "Rules", "generate", "startable", "stream"]
