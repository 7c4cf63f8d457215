"""A worker of bench/decode.py: pyllama.      python -m bench.decode_pyllama MODEL"""
from dataclasses import replace

import numpy as np

import pyllama
from bench.decode_loop import main
from pyllama import backend
from pyllama.generation import GenerationConfig, generate
from pyllama.generation.session import open_session


class Engine:
    def __init__(self, path):
        model = pyllama.load(path)
        self.params, self.config = model.params, replace(model.config, eos_token_id=None)       # as many as asked for
        self.notes = f"uses {backend.cpu.isa if backend.cpu else 'NumPy'}"

    def generate(self, prompt, count, on_token):
        settings = GenerationConfig(max_new_tokens=count, speculation="off")        # a forward pass for each token
        generate(self.params, self.config, [prompt], settings=settings,
                 on_token=lambda _, token, __: on_token(token))

    def gaps(self, prompt, ids):
        """How far the score of each id is below the best score of its place, in standard deviations of the scores."""
        session = open_session(self.params, self.config, 1, len(prompt) + len(ids))
        scores = session.extend([[*prompt, *ids[:-1]]], every=True)[0][-len(ids):]
        return ((scores.max(1) - scores[np.arange(len(ids)), ids]) / scores.std(1)).tolist()


if __name__ == "__main__":
    main(Engine)
