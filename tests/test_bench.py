"""The parts of the benchmarks: workers' answers, the order of turns, and reports.  Nothing is timed."""
import ctypes
import itertools
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import (
    bandwidth,
    decode,
    decode_files,
    decode_loop,
    decode_report,
    decode_sizes,
    gemm,
    mistakes,
    ops,
    products,
    rotation,
    tasks,
    train,
)
from bench.products import OPERANDS
from bench.rotation import Worker, rotate
from bench.sizes import SIZES
from bench.timed import timed
from pyllama import backend, params
from pyllama.models import llama
from pyllama.op import OPS
from pyllama.ops import relu
from pyllama.quantization import EncodedArray, decoded_tree
from pyllama.tasks import TASKS
from pyllama.training.optim import AdamW


def test_a_worker_trains_answers_and_ends():
    """Before it has learned, a model of V tokens has a loss of log V, give or take the spread of its logits."""
    with Worker("pyllama", "bench.train_pyllama", "tiny", "--recompute", PYLLAMA_NUM_THREADS="2") as worker:
        first, second = worker.ask(steps=2), worker.ask(steps=1, profile=True)
    assert worker.process.returncode == 0
    assert [len(first[of]) for of in ("seconds", "losses", "norms")] == [2, 2, 2]
    np.testing.assert_allclose(first["losses"] + second["losses"], math.log(SIZES["tiny"].V), atol=0.05)
    assert 20 < first["peak_rss"] / 2 ** 20 < 500
    assert first["spent"] == {}
    forward, backward = (sum(calls for name, (_, calls) in second["spent"].items() if name.split()[0] == of)
                         for of in ("attention", "attention_backward"))
    assert forward == 2 * backward > 0              # the flag arrived: every block runs twice
    assert 0 < sum(seconds for seconds, _ in second["spent"].values()) < 2 * second["seconds"][0]       # of two cores
    (row,) = train.report("tiny", {"pyllama": [(second, False)], "yardstick": [({"rate": 100.0}, False)]})
    assert json.loads(json.dumps(train.rounded(row))).keys() >= {
        "size", "impl", "tok_s", "ratio_eager", "ratio_fastest", "mfu", "sgemm_gflops", "peak_rss_mb"}


def test_a_worker_that_ends_early_is_an_error(capfd):
    with Worker("mine", "bench.train_pyllama", "nonsense") as worker, pytest.raises(ChildProcessError, match="mine"):
        worker.ask(steps=1)
    assert "KeyError: 'nonsense'" in capfd.readouterr().err


def test_a_worker_does_not_inherit_variables_that_tune_libraries(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("PYLLAMA_ARENA", "0")
    given = {}
    monkeypatch.setattr(rotation.subprocess, "Popen", lambda command, env, **_: given.update(env))
    Worker("worker", "module", OMP_NUM_THREADS="2")
    assert {name: given.get(name) for name in ("OMP_WAIT_POLICY", "PYLLAMA_ARENA", "OMP_NUM_THREADS")} == {
        "OMP_WAIT_POLICY": None, "PYLLAMA_ARENA": "0", "OMP_NUM_THREADS": "2"}


def test_turns_are_reversed_every_round_and_taken_again_if_disturbed(monkeypatch):
    shares, asked = iter([0, 0.5, 0.2, 0, 0, 0.5, 0.3, 0.4]), iter(range(8))
    monkeypatch.setattr(rotation, "wait", lambda workers: None)
    monkeypatch.setattr(rotation, "taken_by_others", lambda workers, run: (next(shares), run()))
    a, b = (SimpleNamespace(name=name, ask=lambda step: (step, next(asked))) for name in "ab")
    turns = [(worker.name, answer, disturbed)
             for worker, answer, disturbed in rotate([a, b], {"a": {"step": 1}, "b": {"step": 2}}, 2, retries=2)]
    assert turns == [("a", (1, 0), False), ("b", (2, 3), False), ("b", (2, 4), False), ("a", (1, 6), True)]


def test_others_take_what_is_busy_or_stolen_on_our_cores_and_not_ours(tmp_path, monkeypatch):
    """The cores' columns: user nice system idle iowait irq softirq steal guest.  A process's: user, system, and those
    of its children."""
    if not hasattr(rotation.os, "sched_getaffinity"):
        pytest.skip("only Linux tells how busy its cores are")
    files = {"stat": "cpu 9 9 9 9 9 9 9 9 9\ncpu0 100 20 3 9000 5000 40 5 600 7000\ncpu1 1 1 1 1 1 1 1 1 1\nctxt 7\n",
             "self/stat": f"7 (a b) c) R {' 9' * 10} 10 2 3 4 9 9", "8/stat": f"8 (x) S {' 9' * 10} 20 0 0 0 9 9"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(rotation, "PROC", tmp_path)
    monkeypatch.setattr(rotation.os, "sched_getaffinity", lambda _: {0})
    worker = SimpleNamespace(process=SimpleNamespace(pid=8))
    assert rotation.others([worker]) * rotation.os.sysconf("SC_CLK_TCK") == 768 - 19 - 20
    (tmp_path / "stat").unlink()
    assert rotation.others([worker]) == 0


def test_flops_are_six_a_token_and_weight_and_those_of_attention():
    """Counted on the model itself.  Causal attention: a query sees T/2 keys in the mean, with 2 products of 2 D."""
    size = SIZES["tiny"]
    config = llama.LlamaConfig(size.V, size.D, size.F, size.L, size.H, tie_word_embeddings=True)
    weights = sum(leaf.size for _, leaf in params.leaves(llama.init(config)) if leaf.ndim == 2)
    assert size.flops == size.tokens * (6 * weights + 3 * size.L * (2 * 2 * size.D * size.T / 2))


def test_what_is_timed_is_counted_once_and_put_back(monkeypatch):
    """On a clock that ticks when it is looked at: each takes a tick of as many cores as the kernel has threads."""
    monkeypatch.setattr("bench.timed.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    monkeypatch.setattr(backend, "cpu", SimpleNamespace(
        threads=lambda: 3, relu=lambda x: (x, (x,)), adamw=lambda *vectors, **options: None))
    optimizer = AdamW(2, "float64", matrices=[])
    x = np.ones(2)
    with timed(optimizer) as spent:
        for _ in range(2):
            y, back = relu(x)
        back(y)
        optimizer.step(x, x, lr=0.1, decay=0.0)
        with backend.use("numpy"):
            relu(x)
    assert spent == {"relu": [6, 2], "relu_backward (NumPy)": [1, 1], "adamw": [3, 1], "relu (NumPy)": [1, 1]}
    relu(x)
    optimizer.step(x, x, lr=0.1, decay=0.0)
    assert spent["relu"] == [6, 2]
    assert spent["adamw"] == [3, 1]


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_the_sizes_of_the_bench_fit_every_op(op):
    asked = ops.request(op)
    op.check(tuple((shape, np.dtype(int if bound else np.float32)) for shape, bound in asked["inputs"]))
    for amount, unit in ops.amounts(op).values():
        assert amount > 2 ** 20
        assert unit in ("GFLOP/s", "GB/s")


def test_the_last_run_of_another_version_on_this_machine_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "RESULTS", tmp_path / "results/ops.jsonl")
    row = {"op": "relu", "of": "forward", "backend": "cpu"}
    assert ops.last("here", "b") == (None, {})
    for machine, version, ms in [("here", "a", 1.0), ("here", "b", 2.0), ("there", "c", 3.0), ("here", "d", 4.0)]:
        ops.keep(machine, version, [row | {"ms": ms}])
    assert ops.last("here", "d") == ("b", {"relu forward cpu": 2.0})


def test_every_weight_s_products_and_their_report():
    """The three products of y = x wᵀ, each of 2 M N K operations, and who is faster."""
    every = list(gemm.products())
    assert {shape for of, _, shape in every if of == "dw = dyᵀ x"} >= {(768, 288, 2048), (768, 288, 8192)}
    for of, shapes, (M, N, K) in every:
        a, b = OPERANDS[of](*(np.empty(shape, np.float32) for shape in shapes))
        assert (a.shape, b.shape) == ((M, K), (K, N))
    turns = {who: [({"seconds": [s, 9.0, s]}, False)] for who, s in {"ours": 1.0, "openblas": 4.0, "mkl": 2.0}.items()}
    row = gemm.row("y = x wᵀ", (1000, 1000, 1000), turns)
    assert (row["ours"], row["openblas"], row["mkl"], row["ratio"]) == (2.0, 0.5, 1.0, 2.0)
    assert gemm.row("y = x wᵀ", (1, 1, 1), {"ours": turns["ours"]})["ratio"] is None


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
def test_a_product_is_timed():
    assert len(products.answer("dw = dyᵀ x", [(30, 20), (30, 10)], seconds=0)["seconds"]) == 2


def test_a_sentence_gets_one_mistake_or_none():
    def after(rule, sentence):
        return [" ".join(words) for words in rule(sentence.split())]

    assert after(mistakes.without_an_article, "He saw a dog and the cat.") == [
        "He saw dog and the cat.", "He saw a dog and cat."]
    assert after(mistakes.with_neighbors_swapped, "He sat on on mats.") == ["He on sat on mats."]
    assert after(mistakes.with_a_disagreeing_verb, "They were glad she was.") == ["They was glad she was."]
    text = "".join(f"The {of} one was seen by {who} again. \n" for of in ("red", "old", "big") for who in "ABCDEFGH")
    rows = list(mistakes.rows(f"{text}{text}<|endoftext|>Too short. He said: “No”."))
    assert [row["corrected"] for row in rows] == [line.strip() for line in text.splitlines()]
    assert rows == list(mistakes.rows(text))
    assert 0 < sum(row["source"] == row["corrected"] for row in rows) < 12
    assert {len(row["source"].split()) - len(row["corrected"].split()) for row in rows} == {0}  # "The" begins them


def test_the_flags_of_every_task_of_the_bench_are_flags(capsys, tmp_path):
    """They are read as far as to the file of rows, which is not there."""
    for task, (rows, _, metrics, models) in tasks.PLAN.items():
        assert {*metrics} <= {*TASKS[task].metric_names}
        for model, flags in models.items():
            assert tasks.pyllama(["finetune", "--task", task, "--model", model, "--data", str(tmp_path / rows),
                                  *tasks.COMMON, *flags, "--out_dir", str(tmp_path / "run")]) == 2
            assert f"cannot read {tmp_path / rows}" in capsys.readouterr().err


def at(begin, *known):
    """A run of an engine, whose tokens were known at these seconds."""
    return {"ids": [7] * len(known), "begin": begin, "known": list(known)}


def test_the_row_of_an_engine():
    """Three tokens after the first take 1.5, 3 and 6 s; the long prompt takes 2, 4 and 8 s; one turn was disturbed."""
    turns = [({"runs": [at(0, 9, 10, 11, 9 + time), at(5, 5 + prompt)], "peak_rss": peak, "notes": "fast"}, disturbed)
             for time, prompt, peak, disturbed in ((3, 8, 10, False), (1.5, 2, 90, False), (6, 4, 20, True))]
    reader = [({"memory": rate, "same_size": 2 * rate}, False) for rate in (40e9, 10e9, 20e9)]
    row = decode_report.row("S", "q8_0", "pyllama", 0.5, turns, reader, file_bytes=10**6)
    needed = (288 * 32000 + 6 * (4 * 288 * 288 + 3 * 288 * 768)) * 34 / 32
    assert (row["tok_s"], row["prompt_tok_s"], row["first_token_s"], row["notes"]) == (1.0, 128.0, 0.5, "fast")
    assert (row["n"], row["disturbed"], row["peak_mb"], row["bytes_per_token"]) == (3, 1, 90e-6, needed)
    assert (row["bandwidth_gb_s"], row["of_bandwidth"], row["of_cached"]) == (20, needed / 20e9, needed / 40e9)
    assert row["limit_mb"] == pytest.approx(1.1 + 2 * 6 * 288 * 513 * 2 / 1e6 + 64)
    assert row["of_limit"] == pytest.approx(row["peak_mb"] / row["limit_mb"])
    broken = decode_report.row("S", "q8_0", "openvino", 0.5, [*turns, ({"error": "no room"}, False)], reader, 10**6)
    assert broken.keys() == row.keys()
    assert (broken["impl"], broken["tok_s"], broken["notes"]) == ("openvino", None, "no room")
    rows = decode_report.beside([row | {"impl": "llamacpp", "tok_s": 0.5}, row, broken])
    assert [row["ratio"] for row in rows] == [1.0, 2.0, None]
    assert decode_report.beside([row])[0]["ratio"] is None


def test_engines_agree_unless_a_token_is_far_below_the_best():
    same = decode_report.agreement("S", "f32", [1, 2, 3, 4], [1, 2, 9, 4], [0, 0, 0.1, 0])
    assert (same["same"], same["of"], same["alike_from_the_start"], same["largest_gap"]) == (3, 4, 2, 0.1)
    assert same["agree"]
    assert not decode_report.agreement("S", "f32", [1, 2], [1, 5], [0, 3.9])["agree"]


def test_an_engine_is_timed_from_the_prompt_to_each_token(monkeypatch):
    class Engine:
        def generate(self, prompt, count, on_token):
            for i in range(count):
                on_token(np.int64(prompt[0] + i))

    monkeypatch.setattr(decode_loop, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    assert decode_loop.timed(Engine(), [5], 3) == {"ids": [5, 6, 7], "begin": 0, "known": [1, 2, 3]}


def test_an_engine_that_refuses_the_model_says_why(tmp_path):
    """The message is the row; the engine does not end with a traceback."""
    with decode.Engine("pyllama", "bench.decode_pyllama", str(tmp_path / "absent.gguf")) as worker:
        answer = worker.ask(tasks=[[[1], 1]])
    assert answer.keys() == {"error"}
    assert "absent.gguf" in answer["error"]


def test_an_engine_that_ends_is_an_answer(capfd):
    with decode.Engine("theirs", "bench.nonsense") as worker:
        assert worker.ask()["error"].startswith("theirs ended with status 1")
    assert "nonsense" in capfd.readouterr().err


@pytest.mark.parametrize("form", decode_files.FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_models_of_the_bench(form, tied):
    """Their matrices have the standard deviation asked for, and a token needs the bytes that they say."""
    size = decode_sizes.SIZES["tiny"]._replace(tied=tied)
    config = decode_files.configuration(size)
    tree = decode_files.parameters(config, form)
    matrices = {name: leaf for name, leaf in params.leaves(tree) if leaf.ndim == 2}
    for _, leaf in params.leaves(decoded_tree(tree)):
        assert leaf.ndim == 1 or abs(leaf.std() / decode_files.STD - 1) < 0.05
    needed = [leaf.nbytes for name, leaf in matrices.items() if tied or "embed_tokens" not in name]
    assert sum(needed) == decode_files.stored_bytes(size.weights, form)
    assert all(isinstance(leaf, EncodedArray) == (form != "f32") for leaf in matrices.values())


needs_a_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")


@needs_a_compiler
def test_a_model_is_written_timed_and_removed(tmp_path, monkeypatch, capsys):
    for name, value in {"PATIENCE": 0, "REST": 0, "DISTURBED": math.inf}.items():
        monkeypatch.setattr(rotation, name, value)
    monkeypatch.setattr(decode, "TURN", 0)
    monkeypatch.setattr(decode, "COUNT", 4)
    monkeypatch.setattr(decode, "MEMORY", 2**22)
    monkeypatch.setattr("sys.argv", ["decode", "--sizes", "tiny", "--formats", "q8_0", "--engines", "pyllama",
                                     "--seconds", "0", "--folder", str(tmp_path), "--json", str(tmp_path / "rows")])
    assert decode.main() == 0
    row = json.loads((tmp_path / "rows").read_text())
    assert (row["size"], row["format"], row["impl"], row["n"], row["ratio"]) == ("tiny", "q8_0", "pyllama", 1, None)
    assert min(row[of] for of in ("tok_s", "prompt_tok_s", "peak_mb", "bandwidth_gb_s", "of_bandwidth")) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    assert "pyllama" in capsys.readouterr().out


@needs_a_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_reader_reads_every_byte(threads):
    """All bytes are 1, so the sum of all words tells whether one was left out.  A part is a multiple of two lines."""
    library, total, size = bandwidth.compiled(), ctypes.c_uint64(), 3 * 2**16
    at = library.filled(size)
    assert library.seconds(at, size, 2, threads, total) > 0
    assert total.value == 2 * (size // 8) * 0x0101010101010101 % 2**64


def test_the_readme_names_every_module():
    folder = Path(rotation.__file__).parent
    named = re.findall(r"`(\w+)(?:\.py)?`", (folder / "README.md").read_text())
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} <= {*named}
