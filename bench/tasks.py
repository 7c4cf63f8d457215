"""Train small models from scratch on small data sets, and compare them with baselines without a neural network.

    python -m bench.tasks --data FOLDER [--tasks classify translate ...]

FOLDER holds cls_sentiment_{train,dev}.jsonl, mt_en_zh_{train,dev}.jsonl, seq2seq_g2p.tsv, sum_scitldr_train.jsonl,
qa_zh.jsonl, and lm_en_tinystories.txt, from which bench/mistakes.py makes write.jsonl.
Each row is one `pyllama finetune`; the commands are printed below the table.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench import mistakes
from pyllama.cli.main import main as pyllama
from pyllama.tasks.seq2seq import correction

COMMON = ["--batch_size", "32", "--warmup_steps", "50", "--eval_steps", "50", "--save_steps", "1000"]
PLAN = {                                                    # task: (train, test, metrics, {model: flags})
    "classify": ("cls_sentiment_train.jsonl", "cls_sentiment_dev.jsonl", ("accuracy",), {
        "lstm": ["--max_steps", "300", "--resid_pdrop", "0.5", "--learning_rate", "2e-3", "--vocab_size", "2048"],
        "bert": ["--max_steps", "300", "--resid_pdrop", "0.3", "--learning_rate", "1e-3", "--vocab_size", "2048"],
        "llama": ["--max_steps", "300", "--resid_pdrop", "0.3", "--learning_rate", "1e-3", "--vocab_size", "2048"]}),
    "translate": ("mt_en_zh_train.jsonl", "mt_en_zh_dev.jsonl", ("chrf",), {
        "transformer": ["--fields", "en", "zh", "--max_steps", "1000", "--learning_rate", "1e-3"]}),
    "g2p": ("seq2seq_g2p.tsv", None, ("edit_error_rate",), {
        "transformer": ["--vocab_size", "400", "--max_steps", "1500", "--learning_rate", "2e-3", "--test", "0.1"]}),
    "summarize": ("sum_scitldr_train.jsonl", None, ("rougeL",), {
        "bart": ["--max_length", "256", "--max_steps", "200", "--num_beams", "4", "--max_new_tokens", "40",
                 "--batch_size", "8"]}),
    "qa": ("qa_zh.jsonl", "qa_zh.jsonl", ("exact_match", "f1"), {       # memorized, so the last step is the best
        "bert": ["--max_length", "384", "--dev", "0.02", "--batch_size", "16", "--learning_rate", "5e-4",
                 "--resid_pdrop", "0", "--max_steps", "500", "--eval_steps", "500"]}),
    "write": ("write.jsonl", None, ("edit_f0.5", "gleu"), {
        "transformer": ["--vocab_size", "2048", "--max_length", "40", "--max_new_tokens", "40", "--max_steps", "2000",
                        "--learning_rate", "1e-3", "--test", "0.1"]}),
}


def bag_of_words(folder: Path) -> float:
    """Accuracy of logistic regression on counts of words and word pairs, with scikit-learn's defaults."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    parts = [[json.loads(line) for line in (folder / f"cls_sentiment_{part}.jsonl").read_text().splitlines()]
             for part in ("train", "dev")]
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    (texts, labels), (unseen, truth) = (([row["text"] for row in part], [row["label"] for row in part])
                                        for part in parts)
    return model.fit(texts, labels).score(unseen, truth)


def unchanged(run: Path) -> dict:
    """The metrics of the task `write` for sentences that are returned unchanged."""
    rows = [json.loads(line) for line in (run / "data/test.jsonl").read_text(encoding="utf-8").splitlines()]
    sources, truth = ([row[name] for row in rows] for name in ("source", "corrected"))
    return correction(sources, sources, truth)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(PLAN), choices=list(PLAN))
    options = parser.parse_args()
    table, commands = Table("task", "model", "measure", "value", "first loss", "last loss", "seconds", box=SIMPLE), []
    for task in options.tasks:
        train, test, metrics, models = PLAN[task]

        def add(model, values, *rest, task=task, metrics=metrics):
            formatted = "\n".join(f"{values[name]:.4f}" for name in metrics)
            table.add_row(task, model, "\n".join(metrics), formatted, *rest)

        if task == "classify":
            add("bag of words", {"accuracy": bag_of_words(options.data)})
        for model, flags in models.items():
            with tempfile.TemporaryDirectory() as folder:
                run, source = Path(folder, "run"), options.data / train
                if task == "write":
                    source = Path(folder, train)
                    source.write_text(mistakes.as_json_lines(options.data / "lm_en_tinystories.txt"), encoding="utf-8")
                flags = ["--task", task, "--model", model, "--data", str(source), *COMMON, *flags,
                         *(["--test_data", str(options.data / test)] if test else [])]
                begin = time.perf_counter()
                if status := pyllama(["finetune", *flags, "--out_dir", str(run)]):
                    return status
                seconds = time.perf_counter() - begin
                losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
                if task == "write":
                    add("unchanged", unchanged(run))
                add(model, json.loads((run / "metrics.json").read_text()), f"{losses[0]:.3f}", f"{losses[-1]:.3f}",
                    f"{seconds:.0f}")
            commands.append(" ".join(["pyllama finetune", *flags]).replace(f"{folder}/", ""))
    Console().print(table)
    print(*commands, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
