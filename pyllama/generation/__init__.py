"""Text generation: settings and rules, the choice of the next token, the loop around it, beams, the text itself.

    results = generate(params, config, prompts, tokenizer, GenerationConfig(max_new_tokens=40))
    for piece in stream(params, config, prompt, tokenizer): print(piece, end="")
"""
from pyllama.generation.loop import Result, generate, startable, stream
from pyllama.generation.rules import Rules
from pyllama.generation.settings import GenerationConfig, SearchConfig

__all__ = ["GenerationConfig", "Result", "Rules", "SearchConfig", "generate", "startable", "stream"]
