"""What bench/minilm.py compares with: the same fine-tuning as a plain loop of PyTorch and transformers.

    python -m bench.minilm_transformers MODEL TRAIN.jsonl TEST.jsonl ANSWER.json WAY STEPS

WAY is float32, bf16 or lora.

Batch, steps, update rule and schedule are pyllama's; a tenth of the rows is for validation every 50 steps.  With bf16,
products and attention are in bfloat16 (autocast).  With lora, PEFT adapts all matrices of the layers with rank 8, and
the head is trained.  Only PyTorch and transformers are needed here, and PEFT for lora.
"""
import json
import math
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

WARMUP, BATCH, EVERY = 20, 32, 50
RATE = 5e-5
LONGEST = 128                                               # tokens


def rate(step, steps):
    """A share of RATE: it rises to 1, then falls as a cosine does, to a tenth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def adapted(model):
    """The model with adapters of rank 8, of which alone the head's and the adapters' parameters train."""
    from peft import LoraConfig, get_peft_model

    of_layers = r".*\.layer\..*\.(query|key|value|dense)"       # "all-linear" would be the pooler, too
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=of_layers))


def main(folder, train, test, answer, way, steps):
    steps = int(steps)
    torch.manual_seed(0)
    random.seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = adapted(model) if way == "lora" else model
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE * (10 if way == "lora" else 1), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    rows, unseen = read(train), read(test)
    labels = sorted({row["label"] for row in rows})
    random.shuffle(rows)
    validation, rows = rows[:len(rows) // 10], rows[len(rows) // 10:]

    def forward(texts, **labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
            return model(**texts, **labels)

    def encoded(some):
        texts = tokenizer([row["text"] for row in some], padding=True, truncation=True, max_length=LONGEST,
                          return_tensors="pt")
        return texts, torch.tensor([labels.index(row["label"]) for row in some])

    @torch.no_grad()
    def accuracy(some):
        model.eval()
        right = 0
        for i in range(0, len(some), BATCH):
            texts, truth = encoded(some[i:i + BATCH])
            right += int((forward(texts).logits.argmax(-1) == truth).sum())
        model.train()
        return right / len(some)

    model.train()
    order, best = [], (-1.0, None)
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = random.sample(rows, len(rows))
        batch, order = order[:BATCH], order[BATCH:]
        texts, truth = encoded(batch)
        forward(texts, labels=truth).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % EVERY == 0 and (found := accuracy(validation)) > best[0]:
            best = found, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best[1])
    Path(answer).write_text(json.dumps(accuracy(unseen)))


if __name__ == "__main__":
    main(*sys.argv[1:])
