"""What llama.cpp makes of GGUF files; runs in an environment with llama-cpp-python.

    python -m tests.llama_cpp.worker REQUEST.json

The request has the texts of each file, or a prompt and how many tokens follow it.  The answer, on standard output, has
the ids of each.
"""
import json
import sys

import llama_cpp
from llama_cpp import llama_cpp as lib

usual = lib.llama_model_default_params


def plain():
    """The usual options, without other layouts of weights: AMX's read beyond the ends of small matrices (0.3.36)."""
    options = usual()
    options.use_extra_bufts = False
    return options


lib.llama_model_default_params = plain


def tokens(path, texts):
    """The ids of each text: [without special tokens in it, with them]."""
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    return [[model.tokenize(text.encode(), add_bos=True, special=special) for special in (False, True)]
            for text in texts]


def continued(path, prompt, count):
    """The most likely tokens after a prompt."""
    model = llama_cpp.Llama(path, n_ctx=len(prompt) + count, verbose=False)
    following = model.generate(prompt, temp=0.0, top_k=1)
    return [next(following) for _ in range(count)]


def main(request):
    with open(request) as file:
        asked = json.load(file)
    answers = {path: tokens(path, texts) for path, texts in asked["texts"].items()}
    answers |= {path: continued(path, *task) for path, task in asked["prompts"].items()}
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
