"""The help pages: a command's flags in groups, required ones first, then the common ones."""
import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping

from pyllama.cli.flags import Flag, flags_of

NAME_WIDTH = 30                                             # columns of a flag and its value

# The flags that most uses of a command set.
COMMON = {
    "train": ("out_dir", "model", "num_hidden_layers", "hidden_size", "num_attention_heads", "block_size",
              "batch_size", "max_steps", "learning_rate", "tokenizer"),
    "finetune": ("out_dir", "epochs", "max_steps", "batch_size", "learning_rate", "warmup_steps", "max_length"),
    "distill": ("out_dir", "model", "num_hidden_layers", "hidden_size", "num_attention_heads", "temperature", "alpha",
                "cache", "top_k", "max_steps", "epochs", "block_size", "max_length", "batch_size", "learning_rate"),
    "generate": ("prompt", "max_new_tokens", "do_sample", "temperature", "seed"),
    "predict": ("data", "text", "out"),
    "evaluate": ("out",),
}
# In a dataclass that the command takes; it refuses them.
UNUSED = {"finetune": ("block_size", "packing", "eval_tokens"), "chat": ("num_return_sequences",)}
GROUPS = {
    "rows": ("fields", "bad_rows", "dev", "test", "test_data", "class_weights", "export"),
    "text": ("block_size", "packing", "field", "tokenizer", "vocab_size", "validation", "split"),
    "model": ("init_from", "intermediate_size", "num_key_value_heads", "resid_pdrop", "tie_word_embeddings",
              "rope_theta", "sliding_window", "bias", "share_layers", "embedding_size", "vectors"),
    "adapters": ("lora", "rank", "lora_alpha", "rslora", "dora", "base_dtype"),
    "distillation": ("student", "copy_layers", "divergence", "hidden", "distance", "attention"),
    "schedule": ("warmup_steps", "schedule", "min_lr", "lr_decay_steps", "decay_steps"),
    "optimization": ("gradient_accumulation_steps", "weight_decay", "max_grad_norm", "label_smoothing", "z_loss",
                     "optimizer", "beta1", "beta2", "adam_epsilon", "momentum", "nesterov"),
    "parameters": ("freeze", "group", "lr_decay_by_layer", "unfreeze_steps", "sparse_updates", "sparsity",
                   "sparsity_steps"),
    "evaluation and checkpoints": ("eval_steps", "eval_tokens", "patience", "save_steps", "save_total_limit",
                                   "log_steps", "sample_tokens", "tensorboard"),
    "sampling": ("top_k", "top_p", "min_p", "repetition_penalty", "num_return_sequences", "stop_strings",
                 "min_new_tokens", "no_repeat_ngram_size"),
    "answers written token by token": ("max_new_tokens", "num_beams", "length_penalty", "early_stopping",
                                       "speculation", "cache", "prompt_cache"),
    "explanations": ("explain", "target", "baseline"),
    "computation": ("device", "dtype", "seed", "recompute", "micro_batch_size", "shards", "allow_nan"),
}
FOOTER = ("Flags may be written with hyphens.  --no_NAME turns a switch off.  --config FILE.toml sets any flag from "
          "lines such as max_steps = 500.")


def command_page(name: str, command: Callable) -> str:
    """The page of `pyllama NAME --help`."""
    flags = [flag for flag in flags_of(command) if flag.name not in UNUSED.get(name, ())]
    width = shutil.get_terminal_size().columns
    description, _, _ = (inspect.getdoc(command) or "").partition("\n\nArgs:")
    lines = [usage(name, flags), ""]
    for paragraph in description.split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), width), ""]
    for title, members in grouped(name, flags).items():
        lines.append(f"{title}:")
        for flag in members:
            lines += entry(f"{flag.label} {flag.metavar}", described(flag), width)
        lines.append("")
    if any(not flag.positional for flag in flags):
        lines += textwrap.wrap(FOOTER, width)
    return "\n".join(lines).rstrip()


def usage(name: str, flags: list[Flag]) -> str:
    """The first line: the command, its positional arguments, its required flags."""
    words = ["usage: pyllama", name]
    for flag in flags:
        if flag.positional:
            label = f"{flag.label} ..." if flag.several else flag.label
            words.append(label if flag.required else f"[{label}]")
        elif flag.required:
            words.append(f"{flag.label} {flag.metavar}")
    if any(not flag.required and not flag.positional for flag in flags):
        words.append("[flags]")
    return " ".join(words)


def grouped(name: str, flags: list[Flag]) -> dict[str, list[Flag]]:
    """{title: flags}: each flag once, in the first group that names it."""
    every = tuple(flag.name for flag in flags)
    groups = {"arguments": tuple(flag.name for flag in flags if flag.positional),
              "required": tuple(flag.name for flag in flags if flag.required)}
    groups |= {"common": COMMON[name], **GROUPS, "other": every} if name in COMMON else {"flags": every}
    left = {flag.name: flag for flag in flags}
    titles = {title: [left.pop(member) for member in members if member in left] for title, members in groups.items()}
    return {title: members for title, members in titles.items() if members}


def described(flag: Flag) -> str:
    """The help of a flag and its default, unless the help has it already or there is none."""
    without = flag.required or flag.type is bool or flag.default in (None, (), "")
    return flag.help if without or "(default" in flag.help else f"{flag.help} (default: {flag.default})"


def entry(name: str, text: str, width: int) -> list[str]:
    """The lines of one entry: the name on the left, the text on the right, wrapped."""
    margin = " " * NAME_WIDTH
    left = f"  {name.rstrip()} "
    lines = textwrap.wrap(text, max(width, 60), initial_indent=margin, subsequent_indent=margin)
    if len(left) > NAME_WIDTH:
        return [left.rstrip(), *lines]
    return [left.ljust(NAME_WIDTH) + lines[0][NAME_WIDTH:], *lines[1:]]


def overview_page(title: str, sections: Mapping[str, Mapping[str, Callable]]) -> str:
    """The page of `pyllama --help`: the commands by section, each with the first line of its docstring."""
    width = shutil.get_terminal_size().columns
    lines = [title, "", "usage: pyllama COMMAND [flags]", ""]
    for section, commands in sections.items():
        lines.append(f"{section}:")
        for name, command in commands.items():
            summary = (inspect.getdoc(command) or "").split("\n\n")[0]
            lines += textwrap.wrap(" ".join(summary.split()), max(width, 60), initial_indent=f"  {name:15}",
                                   subsequent_indent=" " * 17)
        lines.append("")
    lines += textwrap.wrap("`pyllama COMMAND --help` lists the flags of a command; --debug shows the traceback of an "
                           "error.", width)
    return "\n".join(lines)
