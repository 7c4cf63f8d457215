"""transformers' half of the comparison; it runs in an environment without pyllama: see __main__.py."""
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, pipeline

AUTO = {"lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM",
        "classification": "AutoModelForSequenceClassification", "tagging": "AutoModelForTokenClassification",
        "span": "AutoModelForQuestionAnswering"}


def faults_of(case: dict, out: Path) -> list[str]:
    """The differences of transformers, in words; it saves the model and the tokenizer in `out`."""
    folder, head, found = case["folder"], case["head"], []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = getattr(transformers, AUTO[head]).from_pretrained(folder, output_loading_info=True)
    model.eval()
    found += [f"{kind}: {sorted(info[kind])}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
              if info[kind]]
    texts = [(case["question"], case["context"])] if head == "span" else [(text,) for text in case["texts"]]
    for number, text in enumerate(texts):
        inputs = tokenizer(*text, return_tensors="pt")
        if inputs["input_ids"][0].tolist() != case["ids"][number]:
            found.append(f"ids: {inputs['input_ids'][0].tolist()} is not {case['ids'][number]}")
            continue
        more = {"decoder_input_ids": torch.tensor([case["decoder"]])} if head == "seq2seq" else {}
        with torch.no_grad():
            outputs = model(**inputs, **more)
        scores = torch.stack([outputs.start_logits, outputs.end_logits], -1) if head == "span" else outputs.logits
        wanted = torch.tensor(case["scores"][number])
        off = (scores[0] - wanted).abs().max().item()
        if off > 1e-5 * max(1, wanted.abs().max().item()):
            found.append(f"scores: off by {off:.2g}")
    answers = answers_of(case, model, tokenizer)
    if answers is not None and answers != case["answers"]:
        found.append(f"answers: {answers} is not {case['answers']}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return found


def answers_of(case, model, tokenizer):
    """The answers of a pipeline, or of generate; None: there is nothing to compare."""
    head, texts = case["head"], case.get("texts")
    if head == "classification":
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
        together = {"batch_size": 2} if tokenizer.pad_token else {}
        return [answer["label"] for answer in classify(texts, **together)]
    if head == "tagging":
        return tags_of(case, model, tokenizer)
    if head in ("lm", "seq2seq"):
        answers = []
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)[0]
            prompt = inputs["input_ids"].shape[1] if head == "lm" else 0
            answer = tokenizer.decode(ids[prompt:], skip_special_tokens=True)
            answers.append(text + answer if head == "lm" else answer)
        return answers
    return None


def tags_of(case, model, tokenizer):
    """The tag of each token, by the pipeline; those of special tokens are the given ones."""
    tag = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])
    answers = []
    for text, wanted in zip(case["texts"], case["answers"], strict=True):
        tags = list(wanted)
        for token in tag(text):
            tags[token["index"]] = token["entity"]
        answers.append(tags)
    return answers


def main(path, out):
    """Compare the runs of wanted.json."""
    faults = {}
    for name, case in json.loads(Path(path).read_text()).items():
        try:
            AutoConfig.from_pretrained(case["folder"])
            faults[name] = faults_of(case, Path(out, name))
        except Exception as error:                              # of any kind: the other runs are compared, too
            faults[name] = [f"{type(error).__name__}: {str(error)[:200]}"]
    Path(out).mkdir(parents=True, exist_ok=True)
    Path(out, "found.json").write_text(json.dumps({"version": transformers.__version__, "faults": faults}))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(*sys.argv[1:])
