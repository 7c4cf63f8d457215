"""A worker of bench/decode.py: llama.cpp, through the C functions of llama-cpp-python.

    python -m bench.decode_llamacpp MODEL.gguf THREADS
"""
import ctypes

import llama_cpp as lib

from bench.decode_loop import main

CONTEXT = 1024
FEATURES = ("AVX512", "AVX512_VNNI", "AMX_INT8")        # of those that its system info names


class Engine:
    def __init__(self, path, threads):
        self._quiet = lib.llama_log_callback(lambda *_: None)           # kept, because C calls it
        lib.llama_log_set(self._quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise ValueError("llama.cpp does not load the file")
        options = lib.llama_context_default_params()
        options.n_ctx = options.n_batch = CONTEXT
        options.n_threads = options.n_threads_batch = int(threads)
        self.context = lib.llama_init_from_model(self.model, options)
        self.sampler = lib.llama_sampler_init_greedy()
        info = lib.llama_print_system_info().decode()
        self.notes = "uses " + " ".join(name for name in FEATURES if f"{name} = 1" in info)

    def generate(self, prompt, count, on_token):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        tokens = (lib.llama_token * len(prompt))(*prompt)
        for _ in range(count):
            if status := lib.llama_decode(self.context, lib.llama_batch_get_one(tokens, len(tokens))):
                raise ValueError(f"llama_decode returned {status}")
            token = lib.llama_sampler_sample(self.sampler, self.context, -1)
            on_token(token)
            tokens = (lib.llama_token * 1)(token)


if __name__ == "__main__":
    main(Engine)
