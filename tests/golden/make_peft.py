"""Golden numbers from PEFT: adapter folders, logits and gradients of tiny models with LoRA and DoRA.

    make golden             # with torch, transformers and peft; writes peft.json, peft.safetensors and peft/

The weights are those of make_hf.weight().  tests/test_peft.py compares.
"""
import contextlib
import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from tests.golden.make_hf import BOS, EOS, HERE, IDS, LABELS, MASK, PAD, V, weight

SIZE = dict(vocab_size=V, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
GPT2 = dict(vocab_size=V, n_embd=8, n_layer=2, n_head=2, n_positions=16, n_inner=12, bos_token_id=BOS, eos_token_id=EOS)
TEXT = dict(input_ids=IDS, attention_mask=MASK, labels=LABELS)
CLASSES = dict(input_ids=IDS, attention_mask=MASK, labels=np.array([1, 0]))
LLAMA, TRANSPOSED = ("LlamaForCausalLM", SIZE, TEXT), ("GPT2LMHeadModel", GPT2, TEXT)
BERT = ("BertForSequenceClassification", SIZE | dict(type_vocab_size=2, num_labels=2), CLASSES)
Q, C = dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"]), dict(r=2, target_modules=["c_attn", "c_proj"])
CASES = {                                                   # (architecture, configuration, inputs), LoraConfig
    "lora": (LLAMA, Q), "rslora": (LLAMA, Q | dict(use_rslora=True)), "dora": (LLAMA, Q | dict(use_dora=True)),
    "all": (LLAMA, dict(r=2, lora_alpha=4, target_modules="all-linear", use_dora=True)),
    "transposed": (TRANSPOSED, C | dict(fan_in_fan_out=True)),
    "transposed_dora": (TRANSPOSED, C | dict(fan_in_fan_out=True, use_dora=True)),
    "head": (BERT, dict(r=2, target_modules=["query", "value"], use_dora=True, task_type="SEQ_CLS")),
}


@contextlib.contextmanager
def in_float64():
    """Let transformers compute in float64 what it rounds to float32 in a model of any precision.

    These are the norms, angles and softmax of LLaMA, and the loss of language models with its gradient.
    """
    import torch

    with mock.patch.multiple(torch, float=torch.float64, float32=torch.float64), \
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def numbers(name):
    """(what to store in JSON, arrays) of one case; writes its folder."""
    import peft
    import torch
    import transformers
    from safetensors.torch import load_file

    (architecture, config, inputs), lora = CASES[name]
    family = getattr(transformers, architecture)
    base = family(family.config_class(**config)).double().eval()
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        stored = json.loads(Path(folder, "config.json").read_text())
        shapes = {key: list(a.shape) for key, a in load_file(Path(folder, "model.safetensors")).items()}
    everything = base.state_dict(keep_vars=True)                # a tied matrix under each of its names
    for key, shape in shapes.items():
        everything[key].data.copy_(torch.tensor(weight(key, shape)))
    model = peft.get_peft_model(base, peft.LoraConfig(**lora)).double().eval()
    own = {key: a for key, a in model.named_parameters() if a.requires_grad}
    for key, a in own.items():
        a.data.copy_(torch.tensor(np.abs(weight(key, tuple(a.shape))) + 0.5 if "magnitude" in key else
                                  weight(key, tuple(a.shape))))
    outputs = model(**{key: torch.tensor(a) for key, a in inputs.items()})
    outputs.loss.backward()
    model.peft_config["default"].target_modules = sorted(model.peft_config["default"].target_modules)    # it is a set
    model.save_pretrained(HERE / "peft" / name)
    (HERE / "peft" / name / "README.md").unlink()
    renamed = {key: key.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
               .replace("modules_to_save.", "").removeprefix("base_model.model.") for key in own}
    arrays = {f"gradient/{renamed[key]}": a.grad for key, a in own.items()} | {"logits": outputs.logits}
    return ({"config": stored, "shapes": shapes, "loss": float(outputs.loss.detach()),
             "inputs": {key: a.tolist() for key, a in inputs.items()}},
            {key: a.detach().numpy() for key, a in arrays.items()})


def main():
    """Write the numbers of all cases."""
    from safetensors.numpy import save_file

    with in_float64():
        cases = {name: numbers(name) for name in CASES}
    stored = json.dumps({name: case for name, (case, _) in cases.items()}, sort_keys=True)
    (HERE / "peft.json").write_text(f"{stored}\n")
    save_file({f"{name}/{key}": np.ascontiguousarray(a) for name, (_, arrays) in cases.items()
               for key, a in arrays.items()}, HERE / "peft.safetensors")


if __name__ == "__main__":
    main()
