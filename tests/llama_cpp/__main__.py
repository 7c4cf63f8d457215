"""llama.cpp reads our GGUF files: texts become the same tokens, and a trained model continues with the same.

    python -m tests.llama_cpp PYTHON            an interpreter with llama-cpp-python

The exit code is 1 if anything differs.
"""
import json
import random
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import pyllama
from pyllama.formats import llama2c
from pyllama.generation import GenerationConfig, generate
from pyllama.models import llama
from pyllama.pretrained import Model
from pyllama.quantization import encoded_tree
from pyllama.text.tokenizer import Tokenizer
from tests import test_gguf_tokenizer as cases

LETTERS = " \nabcdefghijklmnopqrstuvwxyz.,'!?é日"
ODD = "the cat1 29'S\né日.ß🦙\tſ\u3000\u00a0\r|<>_xX٣²ⅷ"
COUNT, MOST = 300, 25                               # random texts of each kind, characters of each
MODELS = {"f32": (None, {}), **{form: (form, {}) for form in ("f16", "bf16", "q8_0", "q4_0")},
          **{scaling["rope_type"]: (None, {"rope_scaling": scaling}) for scaling in (
              {"rope_type": "linear", "factor": 2.0}, {"rope_type": "ntk", "factor": 4.0},
              {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
              {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64})}}
NEW = 40                                            # tokens of a continuation


def tokenizers():
    """{name: a tokenizer that is written}"""
    return {**{name: cases.byte_pairs(name) for name in cases.SPLITS}, "bytes": Tokenizer.bytes(),
            "characters": Tokenizer.characters(LETTERS), "pieces": cases.keyed(True)[0],
            "pieces without a space": cases.keyed(False)[0],
            **({"stories260K": llama2c.read_tokenizer(cases.STORIES / "tok512.bin")} if cases.STORIES.exists() else {})}


def texts(name):
    """Texts that a tokenizer can encode, some of them made of any characters."""
    rng = random.Random(name)
    points = [*range(1, 0xD800), *range(0xE000, 0x30000)]
    drawn = [*("".join(rng.choices(ODD, k=rng.randint(1, MOST))) for _ in range(COUNT)),
             *("".join(map(chr, rng.choices(points, k=rng.randint(1, MOST)))) for _ in range(COUNT))]
    whole = [*cases.TEXTS, *cases.HARD, "a<|eot_id|>b <tool>c", *drawn]
    if name == "characters":
        whole = ["".join(filter(LETTERS.__contains__, text)) for text in whole]
    return [*filter(None, whole)]


def model_for(tokenizer):
    """A small model with random weights."""
    c = llama.LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                          num_attention_heads=1, max_position_embeddings=64, bos_token_id=tokenizer.bos_id,
                          eos_token_id=tokenizer.eos_id)
    return Model(c, llama.init(c), tokenizer)


def main(python):
    warnings.simplefilter("ignore", UserWarning)        # what llama.cpp does otherwise is known here
    request, expected, names = {"texts": {}, "prompts": {}}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, tokenizer in tokenizers().items():
            path = str(Path(folder, f"{name}.gguf"))
            model_for(tokenizer).save(path)
            request["texts"][path], names[path] = texts(name), f"texts, {name}"
            expected[path] = [[tokenizer.encode(text, True, allowed).tolist() for allowed in ((), "all")]
                              for text in request["texts"][path]]
        for name, changes in MODELS.items() if cases.STORIES.exists() else ():
            path = str(Path(folder, f"{name}.gguf"))
            request["prompts"][path], expected[path] = continued(path, *changes)
            names[path] = f"tokens, {name}"
        Path(folder, "request.json").write_text(json.dumps(request))
        answer = subprocess.run([python, "-m", "tests.llama_cpp.worker", str(Path(folder, "request.json"))], check=True,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    differing = 0
    for path, theirs in json.loads(answer).items():
        wrong = [i for i, (a, b) in enumerate(zip(theirs, expected[path], strict=True)) if a != b]
        differing += len(wrong)
        print(f"{names[path]:30} {len(theirs):5,} compared, {len(wrong)} differ")
        for i in wrong[:3]:
            print(f"    llama.cpp {theirs[i]}\n    ours      {expected[path][i]}")
    return 1 if differing else 0


def continued(path, form, changes):
    """((prompt, count), the ids that follow) of the trained model in a storage format, which is written to the path."""
    model = pyllama.load(cases.STORIES / "stories260K.bin", tokenizer=cases.STORIES / "tok512.bin")
    model = replace(model, config=replace(model.config, **changes))
    model = replace(model, params=encoded_tree(model.params, form, model.config)) if form else model
    model.save(path)
    prompt = [1, *model.tokenizer.encode("Once upon a time").tolist()]
    result, = generate(model.params, model.config, [prompt], model.tokenizer, GenerationConfig(max_new_tokens=NEW))
    return (prompt, len(result.ids)), result.ids


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
