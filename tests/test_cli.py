"""The command as a person types it: every command, its errors, its exit codes."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pyllama import backend
from pyllama.cli import main
from pyllama.cli.flags import flags_of
from pyllama.cli.help import COMMON, GROUPS, UNUSED
from pyllama.cli.main import COMMANDS
from pyllama.cli.parsing import parse
from pyllama.op import OPS
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.log import read_log
from tests.extras import needs_matplotlib

TINY = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2", "--block_size", "8",
        "--warmup_iters", "2", "--eval_tokens", "40"]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@dataclass(frozen=True)
class Window:
    size: float = 1.0           # how wide


def call(capsys, *argv):
    """(exit code, standard output, standard error)"""
    code = main([str(word) for word in argv])
    return code, *capsys.readouterr()


def refused(capsys, *argv):
    """The one sentence that the command line answers with."""
    code, _, err = call(capsys, *argv)
    assert code == 2
    assert "Traceback" not in err
    return " ".join(err.split())


@pytest.fixture
def trained(text, tmp_path, capsys):
    folder = tmp_path / "run"
    code, out, _ = call(capsys, "train", "--data", text, "--out_dir", folder, *TINY, "--max_iters", 6,
                        "--eval_interval", 3, "--log_interval", 1)
    assert code == 0
    assert "done at step 6; best validation loss" in out
    return folder


def test_train_resume_eval_generate_plot(trained, text, capsys):
    assert [line["step"] for line in read_log(trained)] == [1, 2, 3, 4, 5, 6]
    code, out, _ = call(capsys, "resume", trained, "--max_steps", 8)
    assert code == 0
    assert "steps 6 to 8" in out
    assert checkpoint.load(trained).step == 8

    code, out, _ = call(capsys, "eval", "--model", trained, "--data", text)
    assert code == 0
    loss, perplexity, _, tokens = (float(n.replace(",", "")) for n in re.findall(r"[\d.,]*\d", out)[:4])
    assert perplexity == pytest.approx(np.exp(loss), rel=1e-3)
    assert tokens == len(TEXT) - 1
    metrics = text.with_suffix(".json")
    assert call(capsys, "evaluate", "--model", trained, "--data", text, "--out", metrics)[1] == out
    assert json.loads(metrics.read_text())["loss"] == pytest.approx(loss, abs=1e-4)
    for flag in (["--fields", "a", "b"], ["--bad_rows", "skip"], ["--num_beams", 2]):
        name = flag[0].removeprefix("--")
        assert f"{name} has no effect on a model that was trained on text; remove it" in \
            refused(capsys, "evaluate", "--model", trained, "--data", text, *flag)

    code, out, _ = call(capsys, "generate", "--model", trained, "--prompt", "the ", "--max_new_tokens", 5)
    assert code == 0
    assert out.startswith("the ")
    assert len(out) == len("the ") + 5 + len("\n")
    code, out, err = call(capsys, "generate", "--model", trained, "--start", f"FILE:{text}", "--max_new_tokens", 5)
    assert code == 0
    assert out.startswith(TEXT)
    assert err == f"the prompt has {len(TEXT)} tokens; the model reads the last 8\n"
    for name, what in (text.parent, "is a folder"), (text.parent / "*.txt", "does not exist"):
        assert f"which {what}; give the name of one file" in refused(
            capsys, "generate", "--model", trained, "--prompt", f"FILE:{name}")
    code, again, _ = call(capsys, "generate", "--model", trained, "--num_samples", 2, "--do_sample", "--seed", 4)
    assert code == 0
    assert again.count("-" * 15) == 2

    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    code, out, _ = call(capsys, "plot", trained)
    assert code == 0
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_flags_win_over_the_config_file_and_synonyms_mean_the_same(text, tmp_path, capsys):
    config = tmp_path / "small.toml"
    config.write_text("n_layer = 1\nnum_attention_heads = 2\nn_embd = 8\nmax_iters = 9\ntie_word_embeddings = true\n"
                      f"data = ['{text}']\nbatch_size = 2\nblock_size = 8\nwarmup_steps = 1\nmin-lr = 1e-5\n")
    code, _, _ = call(capsys, "train", "--config", config, "--out_dir", tmp_path / "a", "--max_steps=2",
                      "--nesterov=False", "--tokenizer", "byte", "--device=cpu", "--compile=False", "--eval_iters=20",
                      "--compile", "--seed", "1")
    assert code == 0
    saved = checkpoint.load(tmp_path / "a")
    assert saved.step == 2
    assert saved.config["hidden_size"] == 8
    assert saved.config["tie_word_embeddings"] is True
    assert saved.config["vocab_size"] == 256
    assert saved.trainer["settings"]["min_lr"] == 1e-5
    assert saved.trainer["settings"]["seed"] == 1           # a flag without a value, and without effect, takes no other


def test_init_from_starts_where_the_other_model_ended(trained, text, tmp_path, capsys):
    flags = ["train", "--data", text, "--init_from", trained, "--out_dir", tmp_path / "b", "--batch_size", 2,
             "--block_size", 8, "--max_iters", 1, "--learning_rate", 1e-12, "--weight_decay", 0]
    assert "hidden_size has no effect with init_from" in refused(capsys, *flags, "--n_embd", 16)
    assert "block_size is 9" in refused(capsys, *flags, "--block_size", 9)
    code, _, _ = call(capsys, *flags)
    assert code == 0
    before, after = checkpoint.load(trained).tensors, checkpoint.load(tmp_path / "b").tensors
    for name, a in before.items():
        np.testing.assert_allclose(after[name], a, rtol=0, atol=1e-6, err_msg=name)


def test_help_names_every_command_and_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in COMMANDS)
    for name, command in COMMANDS.items():
        code, out, _ = call(capsys, name, "--help")
        assert code == 0
        assert "other:" not in out, name                            # every flag is in a group of GROUPS
        for flag in flags_of(command):
            if flag.name not in UNUSED.get(name, ()):
                label = re.escape(f"{flag.label} {flag.metavar}".strip())
                texts = re.findall(rf"^  {label}\s+([^\n(]+)", out, re.MULTILINE)
                assert len(texts) == 1, (name, flag.name)
                assert len(texts[0]) > 3, (name, flag.name)         # more than "(default: 6)"


def test_help_has_several_spellings(capsys):
    page, overview = call(capsys, "generate", "--help"), call(capsys, "--help")
    for words in (["help", "generate"], ["generate", "-h"], ["--help", "generate"], ["generate", "--model", "--help"],
                  ["generate", "--nosuch", "--help"]):
        assert call(capsys, *words) == page
    assert call(capsys, "help", "eval") == call(capsys, "evaluate", "--help")
    assert call(capsys, "help") == call(capsys, "-h") == overview
    assert "there is no command 'trian'; did you mean train?" in refused(capsys, "help", "trian")
    for word, meant in (("trian", "train"), ("Train", "train"), ("TRAIN", "train"), ("gen", "generate"),
                        ("evaluat", "evaluate"), ("fine-tune", "finetune"), ("predictt", "predict")):
        assert f"did you mean {meant}?" in refused(capsys, word)


def test_every_flag_that_the_groups_of_the_help_name_exists():
    flags = {flag.name for command in COMMANDS.values() for flag in flags_of(command)}
    assert flags >= {name for names in (*GROUPS.values(), *UNUSED.values()) for name in names}
    for command, names in COMMON.items():
        assert {flag.name for flag in flags_of(COMMANDS[command])} >= {*names}


def test_the_help_of_train_begins_with_the_flags_that_a_newcomer_needs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    first = "\n".join(call(capsys, "train", "--help")[1].split("\n")[:25])
    assert all(f"--{name} " in first for name in ("data", "out_dir", "num_hidden_layers", "hidden_size", "max_steps",
                                                  "batch_size", "learning_rate"))


def test_flags_become_the_arguments_of_a_function():
    def command(runs: tuple[str, ...], /, shape: Window, seed: int | None = 1, on: bool = False):
        pass

    assert parse(command, ["a"], "c") == ([("a",)], {"shape": Window()})
    words = ["--size", "2.5", "a", "--seed", "None", "b", "--on"]
    assert parse(command, words, "c") == ([("a", "b")], {"shape": Window(2.5), "seed": None, "on": True})
    assert parse(command, ["a", "--on", "--no_on"], "c")[1]["on"] is False


def test_the_version_is_printed(capsys):
    version = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    for word in ("--version", "-V", "version"):
        assert call(capsys, word) == (0, f"pyllama {version}\n", "")
    assert f"pyllama {version}:" in call(capsys, "--help")[1]


def test_check_passes_the_ops_and_catches_a_wrong_backward(capsys, monkeypatch):
    code, out, _ = call(capsys, "check", "--all", "--problems", 3)
    assert code == 0
    assert all(name in out for name in OPS)
    op = OPS["relu"]
    monkeypatch.setattr(op, "backward", lambda dy, x: (dy,))
    code, out, _ = call(capsys, "check", "relu", "--problems", 3)
    assert code == 1
    assert "x is wrong" in out
    monkeypatch.setattr(op, "backward", lambda dy, x: (dy[None],))
    code, out, _ = call(capsys, "check", "relu", "--on", "numpy", "--problems", 3)
    assert code == 1
    assert "the gradient of x has shape" in out
    code, out, _ = call(capsys, "check", "relu", "nosuch")
    assert (code, out) == (2, "")


def test_env_says_what_is_there_and_why_something_is_not(capsys, monkeypatch):
    code, out, _ = call(capsys, "env")
    assert code == 0
    assert np.__version__ in out
    assert (backend.cpu.isa if backend.cpu else "none: ") in out
    monkeypatch.setattr(backend, "cpu", None)
    monkeypatch.setattr(backend, "why_no_cpu", "for a reason")
    assert re.search("C kernels +none: for a reason", call(capsys, "env")[1])


def test_the_first_line_of_train_says_why_there_are_no_kernels(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(backend, "cpu", None)
    monkeypatch.setattr(backend, "why_no_cpu", "for a reason")
    code, out, _ = call(capsys, "train", "--data", text, "--out_dir", tmp_path / "run", *TINY, "--max_iters", 1)
    assert code == 0
    assert out.startswith("no C kernels: for a reason\n")


def test_a_run_out_of_patience_says_so_and_stays_so(text, tmp_path, capsys):
    flags = ["--data", text, "--out_dir", tmp_path / "run", *TINY, "--max_iters", 50, "--eval_interval", 1,
             "--patience", 2, "--learning_rate", 3, "--optimizer", "sgd", "--schedule", "constant"]
    code, out, _ = call(capsys, "train", *flags)
    assert code == 0
    stop = re.search(r"stopped early at step (\d+)", out)[1]
    assert f"stopped early at step {stop}" in call(capsys, "resume", tmp_path / "run", "--max_steps", 99)[1]


@pytest.mark.parametrize(("argv", "sentence"), [
    (["train", "--data", "{tmp}/nothing.txt"], r"pyllama: there is no file.*nothing\.txt.*; check the spelling"),
    (["train", "--data", "{text}", "--log_interval", "0"], r"pyllama: log_steps is 0; it must be at least 1"),
    (["train", "--data", "{text}", "--sliding_window", "0"], r"pyllama: sliding_window is 0; it must be at least 1"),
    (["train", "--data", "{text}", "--rope_theta", "0"], r"pyllama: rope_theta is 0\.0; it must be above 0"),
    (["train", "--data", "{text}", "--n_kv_head", "0"], r"pyllama: num_key_value_heads is 0; it must be at least 1"),
    (["train", "--data", "{text}", "--device", "tpu"], r"pyllama: --device is 'tpu'; it must be one of cpu, cuda$"),
    (["train", "--data", "{text}", "--out_dir", "{text}/x"], r"pyllama: cannot write .*text\.txt/x"),
    (["train", "--data", "{text}", "--schedule", "wsd"], r"pyllama: schedule wsd falls in its last decay_steps"),
    (["train", "--data", "{text}", "--batch_sise", "3"],
     r"pyllama: train has no flag --batch_sise; did you mean --batch_size\?"),
    (["train", "--data", "{text}", "--max_iters", "many"], r"pyllama: --max_steps is 'many'; it must be a whole"),
    (["train", "--data", "{text}", "--n_head", "5", "--n_embd", "12"], r"pyllama: hidden_size 12 is not a multiple"),
    (["train", "--data", "{text}", "--block_size", "5000"], r"pyllama: .*block_size 5000 needs 5001"),
    (["train", "--data", "{text}", "--min_lr", "1"], r"pyllama: min_lr is 1\.0; it must be between 0 and"),
    (["train", "--config", "{tmp}/no.toml"], r"pyllama: cannot read --config .*no\.toml"),
    (["train", "--config", "{text}"], r"pyllama: --config .*text\.txt is not TOML"),
    (["train", "--data", "{text}", "--init_from", "{tmp}/none"], r"pyllama: there is no .*none; give a run"),
    (["resume", "{tmp}"], r"pyllama: .* holds no checkpoint"),
    (["eval", "--model", "{tmp}/none", "--data", "{text}"], r"pyllama: there is no .*none"),
    (["generate", "--model", "{text}"], r"pyllama: .*text\.txt is not a llama2\.c model"),
    (["ops", "nosuch"], r"pyllama: there is no op 'nosuch'; the ops are adapted_norm, add_rms_norm"),
    (["check", "softmx"], r"pyllama: there is no op 'softmx'; did you mean softmax\?"),
    (["check", "softmax", "--problems", "0"], r"pyllama: problems is 0; it must be at least 1"),
    (["train", "--config"], r"pyllama: --config needs the name"),
    (["train", "--freeze", "--data", "{text}"], r"pyllama: --freeze needs a value; see `pyllama train --help`"),
    (["train", "--data", "{text}", "--freeze"], r"pyllama: --freeze needs a value; see `pyllama train --help`"),
    (["train", "--data", "{text}", "--intermediate_size", "0"], r"pyllama: intermediate_size is 0"),
    (["check", "norm"], r"pyllama: there is no op 'norm'"),
    pytest.param(["plot", "{tmp}"], r"pyllama: .* has no log\.jsonl", marks=needs_matplotlib),
    (["trian"], r"pyllama: there is no command 'trian'; did you mean train\?"),
    ([], r"pyllama: there is no command; give one of train, resume"),
    (["train"], r"pyllama: train needs --data \(files.*\); see `pyllama train --help`"),
    (["finetune", "--data", "rows.csv"], r"pyllama: finetune needs --task \(.*\) and --model \("),
    (["generate", "--model"], r"pyllama: --model needs a value; see `pyllama generate --help`"),
    (["resume"], r"pyllama: resume needs RUN \(folder of the run\); see `pyllama resume --help`"),
    (["train", "--data", "{text}", "--nesterov=3"],
     r"pyllama: --nesterov is '3'; it may stand alone, or be one of True, False$"),
    (["generate", "--model", "{tmp}", "--early_stopping", "foo"],
     r"pyllama: --early_stopping is 'foo'; it may stand alone, or be one of True, False, never$"),
    (["generate", "--model", "{tmp}", "--do_sample", "foo", "--top_k", "3"], r"pyllama: --do_sample is 'foo'; it may"),
    (["generate", "foo", "--do_sample", "--model", "{tmp}"], r"pyllama: generate has no argument foo; see"),
    (["models", "llama"], r"pyllama: models has no argument llama; see `pyllama models --help`"),
])
def test_an_error_is_one_sentence_with_exit_code_2(argv, sentence, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format(tmp=tmp_path, text=text) for word in argv]
    assert re.search(sentence, refused(capsys, *words))
    assert not (tmp_path / "out/checkpoints").exists()


def test_a_second_run_does_not_overwrite_the_first(trained, text, capsys):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert "already contains a run" in refused(capsys, "train", "--data", text, "--out_dir", trained, *TINY)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_run_keeps_its_text(trained, text, tmp_path, capsys):
    """What happens to the source does not matter; what happens to the tokens is noticed."""
    shutil.copytree(trained, tmp_path / "moved")
    text.write_text(TEXT.replace("q", "é"))
    assert call(capsys, "resume", tmp_path / "moved", "--max_steps", 8)[0] == 0
    text.write_text(TEXT)
    assert call(capsys, "resume", trained, "--max_steps", 8)[0] == 0
    for name, a in checkpoint.load(trained).tensors.items():
        np.testing.assert_array_equal(checkpoint.load(tmp_path / "moved").tensors[name], a)
    tokens = trained / "data/tokens.bin"
    tokens.write_bytes(np.frombuffer(tokens.read_bytes(), np.uint16)[::-1].tobytes())
    assert "tokens.bin has changed since" in refused(capsys, "resume", trained, "--max_steps", 9)


@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_a_model_can_be_named_by_the_pointers_of_a_run(trained, pointer, text, capsys):
    for command in (["generate", "--prompt", "th", "--max_new_tokens", 3, "--seed", 1], ["evaluate", "--data", text]):
        assert call(capsys, *command, "--model", trained / pointer) == call(capsys, *command, "--model", trained)


def test_a_text_from_standard_input_can_be_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pyllama.text.corpus._standard_input", lambda: TEXT.encode())
    assert call(capsys, "train", "--data", "-", "--out_dir", tmp_path / "run", *TINY, "--max_iters", 2)[0] == 0
    monkeypatch.setattr("pyllama.text.corpus._standard_input", lambda: b"")
    assert call(capsys, "resume", tmp_path / "run", "--max_steps", 3)[0] == 0


def test_tokens_of_another_tokenizer_are_refused(trained, text, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    Tokenizer.characters(TEXT.replace("q", "Q")).save(other)
    assert "was made with another tokenizer" in refused(
        capsys, "train", "--data", trained / "data/tokens.bin", "--tokenizer", other / "tokenizer.json", "--out_dir",
        tmp_path / "b", *TINY)
    code, _, _ = call(capsys, "train", "--data", trained / "data/tokens.bin", "--tokenizer",
                      checkpoint.load(trained).tokenizer_path, "--out_dir", tmp_path / "c", *TINY, "--max_iters", 2)
    assert code == 0


def test_a_character_the_model_never_saw_is_named(trained, capsys):
    assert "'ß' (U+00DF)" in refused(capsys, "generate", "--model", trained, "--prompt", "straße")


def test_a_tokenizer_of_another_vocabulary_is_refused(trained, tmp_path, capsys):
    Tokenizer.bytes().save(tmp_path / "bytes")
    assert "the tokenizer has 256 tokens but the model's vocabulary has 28" in refused(
        capsys, "generate", "--model", trained, "--tokenizer", tmp_path / "bytes/tokenizer.json")


def test_a_loss_that_is_not_a_number_stops_with_its_place(text, tmp_path, capsys):
    sentence = refused(capsys, "train", "--data", text, "--out_dir", tmp_path / "nan", *TINY, "--max_iters", 50,
                       "--learning_rate", 1e30, "--optimizer", "sgd", "--grad_clip", 0)
    assert re.search(r"the loss is \S+ and the gradient's norm \S+ in step \d+: the .* not finite; lower learning_rate",
                     sentence)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_and_the_resumed_run_is_the_undisturbed_one(number, text, tmp_path):
    """The signal goes to a process of its own once its log shows a step; the run is long enough not to end before."""
    flags = ["--data", text, *TINY, "--lr_decay_iters", 3000, "--save_steps", 3000, "--eval_interval", 3000]

    def begin(*argv):
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", PYTHONUNBUFFERED="1")
        return subprocess.Popen([sys.executable, "-m", "pyllama", *map(str, argv)], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, env=environment, cwd=Path(__file__).parents[1])

    def finish(*argv):
        with begin(*argv) as process:
            assert process.wait() == 0, process.stdout.read()

    with begin("train", "--out_dir", tmp_path / "cut", "--log_interval", 1, *flags, "--max_iters", 3000) as process:
        for line in process.stdout:
            if line.startswith("step"):
                process.send_signal(number)
                break
        rest = process.stdout.read()
    assert process.returncode == 128 + number, rest
    assert "stopping after this step and saving" in rest
    stopped = checkpoint.load(tmp_path / "cut").step
    assert 0 < stopped < 3000
    finish("resume", tmp_path / "cut", "--max_steps", stopped + 3)
    finish("train", "--out_dir", tmp_path / "whole", *flags, "--max_iters", stopped + 3)
    got, want = checkpoint.load(tmp_path / "cut"), checkpoint.load(tmp_path / "whole")
    assert got.step == want.step == stopped + 3
    for name, a in (want.tensors | want.optimizer).items():
        np.testing.assert_array_equal((got.tensors | got.optimizer)[name], a)
