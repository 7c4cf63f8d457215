"""bench/train.py: which implementations are timed, when they agree, and the report.  Nothing is timed."""
import json
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import pytest

from bench import train
from bench.sizes import SIZES


def turns(*seconds, disturbed=False):
    return [({"seconds": [s], "peak_rss": 2 ** 30}, disturbed) for s in seconds]


def test_report_holds_each_against_eager_the_fastest_and_the_yardstick():
    rows = {row["impl"]: row for row in train.report("T", {
        "pyllama": turns(1.0, 2.0, 9.0, disturbed=True), "torch-eager": turns(3.0), "torch-compile": turns(2.5),
        "yardstick of A": [({"rate": 100.0}, False), ({"rate": 50.0}, False), ({"rate": 90.0}, False)],
        "yardstick of B": [({"rate": 80.0}, False), ({"rate": 200.0}, False), ({"rate": 70.0}, False)]})}
    ours = rows["pyllama"]
    assert (ours["tok_s"], ours["ratio_eager"], ours["ratio_fastest"]) == (4096, 1.5, 1.25)
    assert (ours["step_ms"], ours["step_ms_min"], ours["n"], ours["disturbed"]) == (2000, 1000, 3, 3)
    assert (ours["peak_rss_mb"], ours["sgemm_gflops"]) == (1024, 90)
    assert ours["mfu"] == pytest.approx(SIZES["T"].flops / 2 / 90e9)
    assert rows["torch-eager"]["ratio_fastest"] == pytest.approx(2.5 / 3)


def test_the_fastest_may_compute_in_bfloat16():
    rows = {row["impl"]: row for row in train.report("T", {
        "pyllama": turns(1.0), "torch-compile": turns(2.0), "torch-bf16-compile+malloc": turns(0.5),
        "yardstick": [({"rate": 100.0}, False)]})}
    ratios = {name: (row["ratio_fastest"], row["ratio_float32"]) for name, row in rows.items()}
    assert ratios == {"pyllama": (0.5, 2), "torch-compile": (0.25, 1), "torch-bf16-compile+malloc": (1, 4)}


BF16 = ["torch-bf16-eager", "torch-bf16-eager+malloc", "torch-bf16-compile", "torch-bf16-compile+malloc"]


@pytest.mark.parametrize("instructions", ["flags\t: avx2 avx512_bf16", "flags\t: fma amx_bf16 amx_int8",
                                          "Features\t: asimd bf16 i8mm"])
def test_bfloat16_is_timed_where_the_processor_has_it(instructions, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{instructions} last\n")
    monkeypatch.setattr(train, "PROC", tmp_path)
    options = train.parse(["--peers", "--peers-python", train.sys.executable])
    assert {*options.peers} == {name.replace("-bf16", "") for name in BF16} | {*BF16}
    assert options.note == ""


@pytest.mark.parametrize("instructions", ["flags\t: avx2 avx512f avx512_vnni", None])
def test_where_the_processor_has_no_bfloat16_a_line_says_so(instructions, tmp_path, monkeypatch, capsys):
    if instructions:
        (tmp_path / "cpuinfo").write_text(instructions)
    monkeypatch.setattr(train, "PROC", tmp_path)
    monkeypatch.setattr(train, "run", lambda options, size, bar: [({"peers": "{impl}"}, [{"impl": options.peers}])])
    monkeypatch.setattr("sys.argv", ["train", "--sizes", "T", "--peers", "torch-eager", *BF16,
                                     "--peers-python", train.sys.executable])
    train.main()
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{', '.join(BF16)}: not timed, because {tmp_path}/cpuinfo names none of avx512_bf16, amx_bf16, bf16")
    monkeypatch.setattr("sys.argv", [*train.sys.argv, "--json"])
    train.main()
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"impl": ["torch-eager"]}
    assert BF16[0] in shown.err


def test_every_peer_is_run_as_it_is_named(monkeypatch):
    """Only "+malloc" keeps freed memory; the threads of bfloat16 do not share it."""
    monkeypatch.setattr(train, "Worker", lambda name, module, *words, python="", **variables: (name, words, variables))
    options = SimpleNamespace(threads=2, ours=[], peers=[*train.PEERS], peers_python="python")
    ran = {name: (words, variables.get("GLIBC_TUNABLES", "")) for name, words, variables in train.workers(options, "T")}
    assert {name: {*ran[name][0][2:]} for name in train.PEERS} == {
        name: {way for way in ("bf16", "compile") if way in name} for name in train.PEERS}
    assert {name for name in train.PEERS if "trim_threshold" in ran[name][1]} == {
        f"torch{form}-{way}+malloc" for form in ("", "-bf16") for way in ("eager", "compile")}
    assert {name for name in train.PEERS if "arena_max" in ran[name][1]} == {
        "torch-eager+malloc", "torch-compile+malloc"}


def test_ours_is_timed_in_bfloat16_once_it_is_a_choice():
    @dataclass
    class Old:
        dtype: Literal["float32", "float64"] = "float32"

    @dataclass
    class New:
        dtype: Literal["float32", "float64", "bfloat16"] = "float32"

    assert [*train.precisions(Old)] == [("pyllama", [], {})]
    assert [*train.precisions(New)] == [("pyllama", [], {}), ("pyllama-bf16", ["--dtype=bfloat16"], {})]


def test_those_that_disagree_are_not_compared():
    same = {"losses": [6.0, 5.0, 4.0], "norms": [1.0, 1.0, 1.0]}
    answers = {"pyllama": same, "torch-eager": same, "pyllama+x": same | {"norms": [1.0, 1.0, 1.001]},
               "pyllama+y": same | {"losses": [6.0, math.nan, 4.0]}}
    workers = {name: SimpleNamespace(name=name, ask=lambda steps, ids=None, answer=answer: answer)
               for name, answer in answers.items()}
    assert train.first_steps([workers["pyllama"], workers["torch-eager"]], "tiny")
    for wrong in ("pyllama+x", "pyllama+y"):
        with pytest.raises(ValueError, match=wrong.replace("+", r"\+")):
            train.first_steps([workers["pyllama"], workers[wrong]], "tiny")


@pytest.mark.parametrize("name", ["torch-bf16-eager", "pyllama-bf16", "pyllama+shards=1,dtype=bfloat16"])
def test_bfloat16_agrees_within_its_last_place(name):
    """A rounding changes a number by 2 ** -8 of it at most: one must pass, two in one direction must not."""
    def worker(name, norm):
        answer = {"losses": [6.0], "norms": [norm]}
        return SimpleNamespace(name=name, ask=lambda steps, ids=None: answer)

    assert train.first_steps([worker("pyllama", 1.0), worker(name, 1 + 2 ** -8)], "tiny")
    with pytest.raises(ValueError, match=r"more than 4e-03"):
        train.first_steps([worker("pyllama", 1.0), worker(name, 1 + 2 ** -7)], "tiny")


def test_variants():
    assert train.variant("recompute") == ("pyllama+recompute", ["--recompute"], {})
    assert train.variant("small:shards=1,PYLLAMA_ARENA=0") == ("pyllama+small", ["--shards=1"], {"PYLLAMA_ARENA": "0"})
