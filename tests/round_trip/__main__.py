"""Do pyllama and transformers compute the same from each other's folders?

    .venv/bin/python -m tests.round_trip HF5/bin/python HF4/bin/python

Every family that pyllama trains or fine-tunes gets a tiny run.  Each of the given environments has a transformers: it
loads the run (see theirs.py), compares ids, logits, answers and labels, and saves the model; pyllama reads that again.
The exit code is 1 if anything differs.
"""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from pyllama import pretrained
from pyllama.cli.main import main as pyllama
from pyllama.tasks import finetune, qa
from pyllama.tasks.rows import Row

FOLDER = Path("build/round_trip")
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "old", "new", "and", "then"]
TEXTS = ["the old cat sat on a mat", "a dog"]
CONTEXT, QUESTION = "the old cat sat on a mat and then the dog ran", "the dog"
SIZE = ["--n_layer", "2", "--n_head", "2", "--n_embd", "16", "--block_size", "24", "--batch_size", "4", "--max_iters",
        "4", "--warmup_iters", "1"]
TUNING = ["--max_steps", "4", "--warmup_steps", "1", "--max_length", "40", "--vocab_size", "300", "--batch_size", "4"]
BPE = ["--tokenizer", "bpe", "--vocab_size", "300"]
NEXT, MASKED = ("llama", "mistral", "qwen2", "qwen3", "gpt2"), ("bert", "roberta", "distilbert", "albert")
CORRUPTED = ("bart",)

TRAINED = {                                     # run -> flags of pyllama train
    **{model: ["--model", model, *BPE] for model in (*NEXT, *MASKED, *CORRUPTED)},
    "llama-char": ["--tokenizer", "char"],
    "llama-byte": ["--tokenizer", "byte", "--tie_word_embeddings"],
    "llama-bias": [*BPE, "--bias", "--n_kv_head", "1"],
    "llama-window": [*BPE, "--sliding_window", "3"],
    "qwen2-window": ["--model", "qwen2", *BPE, "--sliding_window", "3"],
}
TASKS = {                                       # run -> (task, model); a model may be a run
    **{f"classify-{model}": ("classify", model) for model in (*NEXT[:4], *MASKED, *CORRUPTED)},
    **{f"tag-{model}": ("tag", model) for model in MASKED},
    **{f"qa-{model}": ("qa", model) for model in MASKED},
    **{f"classify-trained-{model}": ("classify", str(FOLDER / "runs" / model)) for model in ("llama", "bert", "bart")},
    "translate-bart": ("translate", "bart"), "instruct-llama": ("instruct", "llama"),
    "instruct-gpt2": ("instruct", "gpt2"),
}


def rows_of(task: str) -> list[dict]:
    """Rows that train a task."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(24)]
    if task == "classify":
        return [{"text": text, "label": ["good", "bad", "odd"][i % 3]} for i, text in enumerate(texts)]
    if task == "tag":
        return [{"tokens": text.split(), "ner_tags": ["B-PET" if word in ("cat", "dog") else "O" for word in
                                                      text.split()]} for text in [*texts, CONTEXT]]
    if task == "qa":
        return [{"context": text, "question": "the dog", "answer": text.split()[2]} for text in texts]
    if task == "instruct":
        return [{"instruction": text, "output": text[::-1]} for text in texts]
    return [{"source": text, "target": text.upper()} for text in texts]


def make(name: str) -> Path:
    """Train a run; returns the folder of its checkpoint."""
    run = FOLDER / "runs" / name
    if name in TRAINED:
        text = FOLDER / "text.txt"
        text.write_text("\n".join(" ".join(np.random.default_rng(i).choice(WORDS, 12)) for i in range(150)))
        arguments = ["train", "--data", str(text), *SIZE, *TRAINED[name]]
    else:
        task, model = TASKS[name]
        data = FOLDER / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task)))
        arguments = ["finetune", "--task", task, "--model", model, "--data", str(data), *TUNING]
    if code := pyllama([*arguments, "--out_dir", str(run)]):
        raise SystemExit(f"pyllama {' '.join(arguments)} ended with exit code {code}")
    return run / "checkpoints" / (run / "latest").read_text().strip()


def expected(folder: Path) -> dict:
    """What pyllama computes from a folder: ids, scores and answers, as theirs.py compares them."""
    model = pretrained.load(folder)
    head, tokenizer = model.config.head, model.tokenizer
    if head == "span":
        work = finetune.trained(model.config, model.params, tokenizer)
        window, = qa.windows([Row("", {"context": CONTEXT, "question": QUESTION})], work)
        ids = [window.inputs["ids"].tolist()]
        types = {"types": window.inputs["types"][None]} if "types" in window.inputs else {}
        z, _ = model.config.model.logits(np.array(ids), model.params, model.config, **types)
        return {"head": head, "ids": ids, "scores": [z[0].tolist()], "question": QUESTION, "context": CONTEXT}
    ids = [list(map(int, row)) for row in tokenizer.encode_batch(TEXTS, add_special_tokens=True)]
    case: dict = {"head": head, "texts": TEXTS, "ids": ids}
    if head == "seq2seq":
        labels = np.array([[5, 6, 7, model.config.eos_token_id]])
        case["decoder"] = [model.config.decoder_start_token_id, *labels[0, :-1].tolist()]
        case["scores"] = [model.logits([row], labels=labels)[0][0].tolist() for row in ids]
        case["answers"] = model.generate(TEXTS, max_new_tokens=8)
    else:
        case["scores"] = [np.squeeze(model.logits([row])[0], axis=0).tolist() for row in ids]
    if head == "lm":
        case["answers"] = model.generate(TEXTS, max_new_tokens=8, do_sample=False)
    elif head == "classification":
        names = model.config.extra["id2label"]
        case["answers"] = [names[str(int(np.argmax(z)))] for z in case["scores"]]
    elif head == "tagging":
        names = model.config.extra["id2label"]
        case["answers"] = [[names[str(i)] for i in np.argmax(z, axis=-1)] for z in case["scores"]]
    return case


def differences(got: dict, wanted: dict) -> list[str]:
    """The differences between two results of expected(), in words."""
    found = [f"{name}: {got.get(name)!r} is not {wanted[name]!r}" for name in ("ids", "answers")
             if name in wanted and got.get(name) != wanted[name]]
    for a, b in zip(got["scores"], wanted["scores"], strict=True):
        a, b = np.array(a), np.array(b)
        if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max())):
            found.append(f"scores: off by {np.abs(a - b).max():.2g}" if a.shape == b.shape else
                         f"scores: of shape {a.shape}, not {b.shape}")
    return found


def main(pythons: list[str]) -> int:
    """Make the runs, compare them in each environment and back, and print a table; returns the exit code."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    made = {name: make(name) for name in (*TRAINED, *TASKS)}
    wanted = {name: expected(folder) for name, folder in made.items()}
    (FOLDER / "wanted.json").write_text(json.dumps({name: {**wanted[name], "folder": str(folder)}
                                                    for name, folder in made.items()}))
    table, failed = {name: [] for name in made}, []
    for number, python in enumerate(pythons):
        out = FOLDER / f"theirs-{number}"
        result = subprocess.run([python, "tests/round_trip/theirs.py", FOLDER / "wanted.json", out], check=False)
        if result.returncode:
            raise SystemExit(f"{python} ended with exit code {result.returncode}")
        theirs = json.loads((out / "found.json").read_text())
        for name in made:
            faults = theirs["faults"][name]
            try:
                faults += [f"back: {fault}" for fault in differences(expected(out / name), wanted[name])]
            except Exception as error:                      # of any kind: the other runs are compared, too
                faults.append(f"back: {type(error).__name__}: {error}")
            table[name].append("differs" if faults else "same")
            failed += [f"{name}, transformers {theirs['version']}: {fault}" for fault in faults]
    for name, cells in table.items():
        print(f"{name:28}{''.join(f'{cell:10}' for cell in cells)}")
    print(*failed, sep="\n")
    print(f"{len(made)} runs, {len(pythons)} environments, {len(failed)} differences")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
