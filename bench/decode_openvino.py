"""A worker of bench/decode.py: OpenVINO GenAI, which reads GGUF.

    python -m bench.decode_openvino MODEL.gguf THREADS
"""
import numpy as np
import openvino as ov
import openvino_genai as genai

from bench.decode_loop import main


class Streamer(genai.StreamerBase):
    """Passes each token on."""

    def __init__(self, on_token):
        super().__init__()
        self.on_token = on_token

    def write(self, tokens):
        for token in tokens if isinstance(tokens, list) else [tokens]:
            self.on_token(token)
        return genai.StreamingStatus.RUNNING

    def end(self):
        pass


class Engine:
    def __init__(self, path, threads):
        self.pipeline = genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=int(threads))
        self.notes = ov.__version__.partition("-")[0]

    def generate(self, prompt, count, on_token):
        ids = ov.Tensor(np.array([prompt], np.int64))
        inputs = genai.TokenizedInputs(ids, ov.Tensor(np.ones_like(ids.data)))
        settings = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        self.pipeline.generate(inputs, settings, Streamer(on_token))


if __name__ == "__main__":
    main(Engine)
