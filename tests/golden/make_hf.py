"""Golden numbers from transformers: logits, losses and gradients of a tiny model of each architecture.

    make golden             # with torch and transformers; writes hf.json, hf.safetensors

The weights are not stored: weight() makes them again from their names.  tests/test_transformers.py compares.
"""
import json
import tempfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
V, PAD, BOS, EOS = 19, 0, 1, 2
IDS = np.array([[1, 5, 7, 11, 3, 2], [1, 9, 5, 2, 0, 0]])
MASK = (IDS != PAD).astype(int)
FULL = np.array([[1, 5, 7, 11, 3, 2], [1, 9, 5, 18, 6, 2]])
LABELS = np.where(MASK == 0, -100, IDS)
TARGET = np.array([[4, 8, 6, 2], [12, 2, -100, -100]])

SIZE = dict(vocab_size=V, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
GROUPED = SIZE | dict(num_attention_heads=4, num_key_value_heads=2)
GPT2 = dict(vocab_size=V, n_embd=8, n_layer=2, n_head=2, n_positions=16, n_inner=12, bos_token_id=BOS, eos_token_id=EOS)
BART = dict(vocab_size=V, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=4, encoder_ffn_dim=12, decoder_ffn_dim=10, max_position_embeddings=16,
            pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=EOS)
ROBERTA = SIZE | dict(type_vocab_size=1, pad_token_id=1, bos_token_id=0)
ALBERT = SIZE | dict(embedding_size=6, num_hidden_layers=4, num_hidden_groups=2)
DISTIL = dict(vocab_size=V, dim=8, hidden_dim=12, n_layers=2, n_heads=2, max_position_embeddings=16, pad_token_id=PAD)
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8)
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=2.0,
            beta_slow=0.3)

TEXT = dict(input_ids=IDS, attention_mask=MASK, labels=LABELS)
CLASSES = dict(input_ids=IDS, attention_mask=MASK, labels=np.array([2, 0]))
TAGS = dict(input_ids=IDS, attention_mask=MASK, labels=np.where(MASK == 0, -100, IDS % 3))
SPANS = dict(input_ids=FULL, start_positions=np.array([1, 2]), end_positions=np.array([1, 4]))
PAIR = dict(input_ids=IDS, attention_mask=MASK, labels=TARGET,
            decoder_input_ids=np.array([[2, 4, 8, 6], [2, 12, 2, 0]]))
BODY = dict(input_ids=IDS, attention_mask=MASK)

# RoBERTa swaps the ids of <s> and <pad>.
SWAP = np.array([1, 0, *range(2, V)])


def swapped(inputs, **others):
    """The inputs with RoBERTa's special tokens."""
    return inputs | {"input_ids": SWAP[inputs["input_ids"]]} | others


CASES = {                                       # name -> architecture, its configuration, its inputs
    "llama": ("LlamaForCausalLM", GROUPED | dict(attention_bias=True, mlp_bias=True), TEXT),
    "llama-tied-stretched": ("LlamaForCausalLM", GROUPED | dict(tie_word_embeddings=True, rope_parameters=LLAMA3),
                             TEXT),
    "llama-yarn": ("LlamaForCausalLM", GROUPED | dict(hidden_size=32, rope_parameters=YARN), TEXT),
    "llama-classification": ("LlamaForSequenceClassification", GROUPED | dict(num_labels=3), CLASSES),
    "mistral": ("MistralForCausalLM", GROUPED | dict(sliding_window=3), TEXT),
    "mistral-classification": ("MistralForSequenceClassification", GROUPED | dict(num_labels=3), CLASSES),
    "qwen2": ("Qwen2ForCausalLM", GROUPED | dict(use_sliding_window=True, sliding_window=2, max_window_layers=1), TEXT),
    "qwen2-classification": ("Qwen2ForSequenceClassification", GROUPED | dict(num_labels=3), CLASSES),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | dict(head_dim=6, attention_bias=True), TEXT),
    "qwen3-classification": ("Qwen3ForSequenceClassification", GROUPED | dict(head_dim=6, num_labels=3), CLASSES),
    "gpt2": ("GPT2LMHeadModel", GPT2, TEXT),
    "gpt2-untied-silu": ("GPT2LMHeadModel", GPT2 | dict(tie_word_embeddings=False, activation_function="silu"), TEXT),
    "bert": ("BertForMaskedLM", SIZE, TEXT),
    "bert-silu": ("BertForMaskedLM", SIZE | dict(hidden_act="silu"), TEXT),
    "bert-classification": ("BertForSequenceClassification", SIZE | dict(num_labels=3), CLASSES),
    "bert-tagging": ("BertForTokenClassification", SIZE | dict(num_labels=3), TAGS),
    "bert-span": ("BertForQuestionAnswering", SIZE, SPANS),
    "bert-none": ("BertModel", SIZE, BODY),
    "bart": ("BartForConditionalGeneration", BART, PAIR),
    "bart-classification": ("BartForSequenceClassification", BART | dict(num_labels=3), CLASSES),
    "mbart": ("MBartForConditionalGeneration", BART | dict(scale_embedding=True), PAIR),
    "mbart-classification": ("MBartForSequenceClassification", BART | dict(num_labels=3), CLASSES),
    "roberta": ("RobertaForMaskedLM", ROBERTA | dict(hidden_act="relu"), swapped(TEXT)),
    "roberta-classification": ("RobertaForSequenceClassification", ROBERTA | dict(num_labels=3), swapped(CLASSES)),
    "roberta-tagging": ("RobertaForTokenClassification", ROBERTA | dict(num_labels=3), swapped(TAGS)),
    "roberta-span": ("RobertaForQuestionAnswering", ROBERTA, swapped(SPANS)),
    "roberta-none": ("RobertaModel", ROBERTA, swapped(BODY)),
    "xlm-roberta": ("XLMRobertaForMaskedLM", ROBERTA, swapped(TEXT)),
    "camembert": ("CamembertForSequenceClassification", ROBERTA | dict(num_labels=3), swapped(CLASSES)),
    "albert": ("AlbertForMaskedLM", ALBERT, TEXT),
    "albert-classification": ("AlbertForSequenceClassification", ALBERT | dict(num_labels=3), CLASSES),
    "albert-tagging": ("AlbertForTokenClassification", ALBERT | dict(num_labels=3), TAGS),
    "albert-span": ("AlbertForQuestionAnswering", ALBERT, SPANS),
    "albert-none": ("AlbertModel", ALBERT, BODY),
    "distilbert": ("DistilBertForMaskedLM", DISTIL, TEXT),
    "distilbert-classification": ("DistilBertForSequenceClassification", DISTIL | dict(num_labels=3), CLASSES),
    "distilbert-tagging": ("DistilBertForTokenClassification", DISTIL | dict(num_labels=3), TAGS),
    "distilbert-span": ("DistilBertForQuestionAnswering", DISTIL, SPANS),
    "distilbert-none": ("DistilBertModel", DISTIL, BODY),
}


def weight(name: str, shape) -> np.ndarray:
    """The entries of a parameter: uniform in ±0.5, around 1 for a norm; float64, the same on every machine."""
    bits = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    values = (bits >> np.uint64(40)).astype(float) / 2 ** 24 - 0.5
    one = name.endswith("weight") and any(part in name.lower() for part in ("norm", "ln_"))
    return (values + one).reshape(shape)


def numbers(name):
    """(what to store in JSON, arrays) of one case."""
    import torch
    import transformers
    from safetensors.torch import load_file

    architecture, config, inputs = CASES[name]
    family = getattr(transformers, architecture)
    model = family(family.config_class(**config)).double().eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        stored = json.loads(Path(folder, "config.json").read_text())
        shapes = {key: list(a.shape) for key, a in load_file(Path(folder, "model.safetensors")).items()}
    everything = model.state_dict(keep_vars=True)               # a tied matrix under each of its names
    for key, shape in shapes.items():
        everything[key].data.copy_(torch.tensor(weight(key, shape)))
    outputs = model(**{key: torch.tensor(a) for key, a in inputs.items()})
    arrays, loss = {}, None
    if "loss" in outputs:
        outputs.loss.backward()
        loss = float(outputs.loss.detach())
        arrays = {f"gradient/{key}": everything[key].grad for key in shapes if everything[key].grad is not None}
    if "start_logits" in outputs:
        arrays["logits"] = torch.stack([outputs.start_logits, outputs.end_logits], -1)
    else:
        arrays["logits"] = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    inputs = {key: a.tolist() for key, a in inputs.items()}
    return ({"config": stored, "shapes": shapes, "loss": loss, "inputs": inputs},
            {key: a.detach().numpy().astype("float32") for key, a in arrays.items()})


def main():
    """Write the numbers of all cases."""
    from safetensors.numpy import save_file

    cases = {name: numbers(name) for name in CASES}
    (HERE / "hf.json").write_text(json.dumps({name: case for name, (case, _) in cases.items()}, sort_keys=True) + "\n")
    save_file({f"{name}/{key}": np.ascontiguousarray(a) for name, (_, arrays) in cases.items()
               for key, a in arrays.items()}, HERE / "hf.safetensors")


if __name__ == "__main__":
    main()
