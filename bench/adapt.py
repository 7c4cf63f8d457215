"""What each way to adapt a model, or to spare its parameters, saves and costs: one command a row.

    python -m bench.adapt [--data FOLDER] [--fixtures FOLDER] [--parts stories scratch sentences memory]
                           [--peers-python PYTHON] [--json]

    stories      stories260K, a LLaMA that writes children's stories, learns Shakespeare
    scratch      a LLaMA of the demo's size learns Shakespeare from its first step
    sentences    MiniLM, an encoder of 22.7 million parameters, learns to tell good reviews from bad ones, in half the
                 steps of bench/minilm.py
    memory       two steps of a random LLaMA of 110 million parameters (size M), one text of 256 tokens each

A row is a process of its own.  `saved` is what a user keeps of it: the weights or the adapter of the best checkpoint.
`optimizer` is what its checkpoints have besides.  PEFT runs where --peers-python names a Python that has it.  A part
whose data or weights are missing is skipped with the reason.
"""
import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.minilm import FLAGS, TEST, TRAIN, Missing, measured, theirs, weights
from bench.rotation import ROOT
from bench.sizes import SIZES
from bench.table import show
from bench.train import rounded
from pyllama.models.llama_config import LlamaConfig
from pyllama.pretrained import Model
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.log import read_log

SHARED = ROOT.parent / "shared"
LORA = ["--lora", "all-linear", "--rank", "8"]
ADAPTED = {                                                 # ways to adapt a trained model: {name: flags}
    "all parameters": [],
    "LoRA": LORA,
    "DoRA": [*LORA, "--dora", "exact"],
    "DoRA, norm detached": [*LORA, "--dora", "detached"],
    "QLoRA, Q8_0": [*LORA, "--base_dtype", "q8_0"],
    "QLoRA, Q4_0": [*LORA, "--base_dtype", "q4_0"]}
LARGER = 10                                                 # an adapter begins at zero, and takes larger steps
SCRATCH = {
    "plain": [],
    "layers shared, 1 1 2 2": ["--share_layers", "2"],
    "layers shared, 1 2 1 2": ["--share_layers", "1,2,1,2"],
    "one layer for all": ["--share_layers", "4"],
    "factorized embeddings": ["--embedding_size", "32"],
    "half the weights at 0": ["--sparsity", "0.5"],
    "rates by layer": ["--lr_decay_by_layer", "0.9"]}
STEPS = 100                                                 # half of those of bench/minilm.py: there are many ways
SENTENCES = {name: ADAPTED[name] for name in ("all parameters", "LoRA", "DoRA", "QLoRA, Q4_0")} | {
    "rates by layer": ["--lr_decay_by_layer", "0.8"],
    "a layer at a time": ["--unfreeze_steps", "12"]}
COLUMNS = {"part": "{part}", "way": "{way}", "saved MB": "{saved:.3f}", "optimizer MB": "{optimizer:.3f}",
           "peak MiB": "{peak_rss_mb:,.0f}", "seconds": "{seconds:.0f}", "of computing": "{cpu_s:.0f}",
           "loss": "{loss:.3f}", "accuracy": "{accuracy:.3f}"}
PEFT = "transformers-lora"


def present(*paths: Path) -> None:
    """Raise Missing unless all of these exist."""
    if absent := [str(path) for path in paths if not path.exists()]:
        raise Missing(f"there is no {' and no '.join(absent)}")


def row(part: str, way: str, command: list, run: Path) -> dict:
    """Run `pyllama *command` in a process and read its folder."""
    figures = measured([sys.executable, "-m", "pyllama", *map(str, command), "--out_dir", run])
    sizes = {path.name: path.stat().st_size for path in checkpoint.best(run).iterdir()}
    optimizer = sizes.pop(checkpoint.OPTIMIZER)
    kept = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    losses = [line["val_loss"] for line in read_log(run) if "val_loss" in line]
    metrics = run / "metrics.json"
    accuracy = json.loads(metrics.read_text())["accuracy"] if metrics.exists() else None
    return {"part": part, "way": way, "saved": kept / 1e6, "optimizer": optimizer / 1e6, "loss": min(losses),
            "accuracy": accuracy, **figures}


def rate(flags: list, usual: float) -> list:
    return ["--learning_rate", usual * (LARGER if "--lora" in flags else 1)]


def stories(options, folder: Path) -> Iterator[dict]:
    model = options.fixtures / "stories260K"
    text = options.data / "tinyshakespeare/input.txt"
    present(model / "stories260K.bin", model / "tok512.bin", text)
    common = ["train", "--init_from", model / "stories260K.bin", "--tokenizer", model / "tok512.bin", "--data", text,
              "--max_steps", 300, "--warmup_steps", 20, "--eval_steps", 100, "--eval_tokens", 50_000]
    for way, flags in ADAPTED.items():
        yield row("stories", way, [*common, *rate(flags, 1e-3), *flags], folder / way)


def scratch(options, folder: Path) -> Iterator[dict]:
    text = options.data / "tinyshakespeare/input.txt"
    present(text)
    common = ["train", "--data", text, "--tokenizer", "bpe", "--vocab_size", 1024, "--num_hidden_layers", 4,
              "--num_attention_heads", 4, "--hidden_size", 128, "--batch_size", 8, "--max_steps", 400,
              "--warmup_steps", 50, "--learning_rate", 4e-3, "--eval_steps", 200, "--eval_tokens", 20_000]
    for way, flags in SCRATCH.items():
        yield row("scratch", way, [*common, *flags], folder / way)


def sentences(options, folder: Path) -> Iterator[dict]:
    model = weights(options.weights.absolute())
    data = options.data / "quickstart"
    present(data / TRAIN, data / TEST)
    common = ["finetune", "--task", "classify", "--model", model, "--data", data / TRAIN, "--test_data", data / TEST,
              *FLAGS, "--max_steps", STEPS]
    for way, flags in SENTENCES.items():
        yield row("sentences", way, [*common, *rate(flags, 5e-5), *flags], folder / way)
    if options.peers_python:
        figures = theirs(PEFT, options.peers_python.absolute(), model, data, folder, STEPS)
        yield {"part": "sentences", "way": "LoRA, PEFT", "saved": None, "optimizer": None, "loss": None, **figures}


def memory(options, folder: Path) -> Iterator[dict]:
    """Batch 1 x 256, adapters of rank 8 on q_proj and v_proj, over a folder in float32."""
    model, text = folder / "model", folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    process = multiprocessing.get_context("spawn").Process(target=save_random, args=(model,))
    process.start()                                         # a child's peak begins at that of its parent
    process.join()
    common = ["train", "--init_from", model, "--data", text, "--batch_size", 1, "--block_size", 256, "--max_steps", 2,
              "--warmup_steps", 0, "--sample_tokens", 0]
    lora = ["--lora", "q_proj,v_proj"]
    ways = {"all parameters": [], "LoRA": lora, "DoRA": [*lora, "--dora", "exact"],
            "QLoRA, Q4_0": [*lora, "--base_dtype", "q4_0"]}
    for way, flags in ways.items():
        yield row("memory", way, [*common, *flags], folder / way)


def save_random(folder: Path) -> None:
    """Save a model of size M with random weights, and a tokenizer of bytes."""
    size = SIZES["M"]
    config = LlamaConfig(vocab_size=size.V, hidden_size=size.D, intermediate_size=size.F, num_hidden_layers=size.L,
                         num_attention_heads=size.H, max_position_embeddings=256, tie_word_embeddings=True)
    Model(config, config.model.init(config), Tokenizer.bytes()).save(folder)


PARTS = {"stories": stories, "scratch": scratch, "sentences": sentences, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--fixtures", type=Path, default=SHARED / "fixtures")
    parser.add_argument("--weights", type=Path, default=ROOT / ".minilm", help="the environment of MiniLM's package")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers-python", type=Path, help="a Python that has PyTorch, transformers and PEFT")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    rows: list[dict] = []
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for record in PARTS[part](options, Path(folder)):
                    print(f"{part}: {record['way']}", file=sys.stderr)
                    rows.append(record)
            except Missing as reason:
                print(f"{part} is skipped: {reason}", file=sys.stderr)
    if options.json:
        print(*(json.dumps(rounded(record)) for record in rows), sep="\n")
    else:
        show(COLUMNS, rows)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChildProcessError as error:
        sys.exit(f"bench/adapt.py: {error}")
