"""Relations between marked entities: read, scored as the official scorer does, and written as a graph."""
import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks import graph
from pyllama.tasks.relations import OTHER, marked, metrics, task, triples
from pyllama.tasks.rows import Row, Source, read

SENTENCES = '''1\t"The <e1>fire</e1> came from a "hot" <e2>stove</e2>."
Cause-Effect(e2,e1)
Comment: a comment

2\t"An <e1>engine</e1> of a <e2>car</e2>."
Component-Whole(e1,e2)
Comment:

3 "A <e1>dog</e1> and a <e2>cat</e2>."
Other
'''
# The output of SemEval-2010 task 8's scorer for one system.  Rows are true classes and columns are answers, Other last;
# then how often the relation was right but its direction wrong, and the F1 in percent.
OFFICIAL = """
C-E 300    0    0    0    4    1    0    2    2   12   3 91.88
C-W   1  235    5    1    1   11   11    6    3   29   8 78.20
C-C   0    5  160    7    2    0    1    1    1   11   4 82.05
E-D   0    2    7  264    0    0    0    1    1   16   1 88.89
E-O   3    1    1    4  226    1    0    1    3   16   1 85.77
I-A   0    4    1    1    1  118    0    4    5   21   0 73.98
M-C   0    4    0    0    2    0  206    1    0   19   0 85.65
M-T   1    5    0    1    2    0    2  229    1   19   1 84.35
P-P   5    1    2    0    4    9    0    3  177   27   2 78.49
_O_  16   25   18   23   27   24   29   33   26  231   0  0
"""
OFFICIAL_F1 = 83.25


def row(relation="", text="<e1>a</e1> <e2>b</e2>"):
    return Row("here", {"text": text, "relation": relation})


def loaded(path, names=task.fields):
    rows, _ = read(Source(path), names, task.usable if "relation" in names else task.askable, task.readers)
    return rows


# Measures

def test_f1_is_the_official_scorers():
    lines = [line.split() for line in OFFICIAL.strip().split("\n")]
    names = [line[0] for line in lines[:-1]]
    answers, rows = [], []
    for true, line in zip([*names, OTHER], lines, strict=True):
        for answer, count in zip([*names, OTHER], map(int, line[1:11]), strict=True):
            for i in range(count):                                  # both directions occur, and count as one class
                way = "" if true == OTHER else "(e1,e2)" if i % 2 else "(e2,e1)"
                answers.append(answer if answer == OTHER else answer + (way or "(e1,e2)"))
                rows.append(row(true + way))
        answers += [f"{true}(e1,e2)"] * int(line[11])
        rows += [row(f"{true}(e2,e1)")] * int(line[11])
    measured = metrics(answers, rows)
    assert round(100 * measured["f1_macro"], 2) == OFFICIAL_F1
    assert measured["accuracy"] == pytest.approx(0.7931, abs=5e-5)
    assert measured["rows"] == len(rows) == 2706
    assert np.sum(measured["confusion"]) == 2706
    assert "Other" in measured["labels"]
    assert "C-E(e2,e1)" in measured["labels"]
    for name, line in zip(names, lines, strict=False):
        those = [i for i in range(len(rows)) if rows[i].values["relation"].startswith(name)]
        others = [i for i in range(len(rows)) if i not in set(those)]
        alone = metrics([answers[i] for i in [*those, *others]],
                        [rows[i] if i in those else row(OTHER) for i in [*those, *others]])
        assert round(100 * alone["f1_macro"], 2) == float(line[12]), name


def test_a_wrong_direction_is_wrong_and_what_is_never_true_is_no_class():
    assert metrics(["R(e2,e1)", "R(e1,e2)"], [row("R(e1,e2)"), row("R(e1,e2)")])["f1_macro"] == 0.5
    assert metrics(["S(e1,e2)", "R(e1,e2)"], [row("R(e1,e2)"), row("R(e1,e2)")])["f1_macro"] == pytest.approx(2 / 3)
    assert metrics([OTHER, "S"], [row(OTHER), row(OTHER)])["f1_macro"] == 0


# Rows

def test_the_original_files_are_read(tmp_path):
    path = tmp_path / "TRAIN.TXT"
    path = path.with_suffix(".txt")
    path.write_text(SENTENCES)
    rows = loaded(path)
    assert [r.values["relation"] for r in rows] == ["Cause-Effect(e2,e1)", "Component-Whole(e1,e2)", "Other"]
    assert rows[0].values["text"] == 'The <e1>fire</e1> came from a "hot" <e2>stove</e2>.'
    assert [r.place for r in rows] == [f"{path} line {n}" for n in (1, 5, 9)]
    bare = tmp_path / "bare.txt"
    bare.write_text("".join(line + "\n" for line in SENTENCES.split("\n") if line[:1].isdigit()))
    assert [r.values for r in loaded(bare, ("text",))] == [{"text": r.values["text"]} for r in rows]
    with pytest.raises(UserError, match=r"bare.txt line 1: it has no field 'relation'"):
        loaded(bare)


@pytest.mark.parametrize(("text", "reason"), [
    ("1\tno quotes\nOther\n", r"line 1: it is neither a number and a sentence"),
    ('1\t"<e1>a</e1> <e2>b</e2>"\nOther\nmore\n', r"line 3: it is neither"),
    ('1\t"<e1>a</e1> <e2>b</e2>"\n\n2\t"<e1>a</e1> <e2>b</e2>"\nOther\n', r"line 1: it has no field 'relation'"),
    ('1\t"<e1>a</e1> b"\nOther\n', r"line 1: '<e1>a</e1> b' does not contain one marked entity <e2>...</e2>"),
])
def test_a_bad_line_is_reported_with_its_number(tmp_path, text, reason):
    (tmp_path / "rows.txt").write_text(text)
    with pytest.raises(UserError, match=reason):
        loaded(tmp_path / "rows.txt")


@pytest.mark.parametrize("text", ["a <e2>b</e2>", "<e1>a</e1> <e1>c</e1> <e2>b</e2>", "<e1>a <e2>b</e2>",
                                  "</e1>a<e1> <e2>b</e2>", "<e1> </e1> <e2>b</e2>", "<e1><e2>b</e2></e1> </e2>"])
def test_a_text_that_does_not_mark_two_things_is_refused(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": text, "relation": "R"}))
    for names in (task.fields, task.fields[:-1]):
        with pytest.raises(UserError, match=r"line 1: .* does not contain one marked entity <e[12]>"):
            loaded(path, names)


def test_a_mark_is_a_token_of_its_own():
    tokenizer = task.tokenizer(["a <e1>dog</e1> of <e2>cats</e2>"] * 9, 300, marks=task.markers)
    tokens = [tokenizer.rust.id_to_token(int(i)) for i in tokenizer.encode("so<e1>dog</e1>,<e2>x</e2>",
                                                                           allowed_special=task.markers)]
    assert [token for token in tokens if "<" in token or ">" in token] == ["<e1>", "</e1>", "<e2>", "</e2>"]


# Triples

def test_the_direction_says_which_is_the_head():
    text = "the <e1>wet  \u0001street</e1> of <e2>the <e1>rain</e2>".replace("<e2>the <e1>", "<e2>the ")
    assert marked(text) == ["wet  \u0001street", "the rain"]
    rows = [row(text=text)] * 4
    assert triples(rows, ["Cause-Effect(e2,e1)", "Cause-Effect(e1,e2)", "Other", "near"]) == [
        ("the rain", "Cause-Effect", "wet street"), ("wet street", "Cause-Effect", "the rain"),
        ("wet street", "near", "the rain")]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=8).filter(str.strip)
several = st.lists(st.tuples(words, words, st.sampled_from(["R(e1,e2)", "R(e2,e1)", "S & <é>", "an, \"other\""])),
                   max_size=5)


@given(several)
def test_each_kind_of_file_reads_back(given_rows):
    networkx, rdflib = pytest.importorskip("networkx"), pytest.importorskip("rdflib")
    rows = [row(text=f"<e1>x{a}</e1> <e2>{b}y</e2>") for a, b, _ in given_rows]
    answers = [answer for _, _, answer in given_rows]
    due = triples(rows, answers)
    made = {suffix: task.export(Path("g" + suffix))(rows, answers)[0] for suffix in (".csv", ".graphml", ".ttl")}

    assert list(csv.reader(io.StringIO(made[".csv"].decode(), newline=""))) == [
        ["head", "relation", "tail"], *map(list, due)]
    read_back = networkx.parse_graphml(made[".graphml"].decode(), force_multigraph=True)
    assert read_back.is_directed()
    assert Counter((a, r, b) for a, b, r in read_back.edges(data="relation")) == Counter(due)
    facts = rdflib.Graph().parse(data=made[".ttl"], format="turtle")
    name = dict(facts.subject_objects(rdflib.RDFS.label))
    arrows = [(str(name[a]), r, str(name[b])) for a, r, b in facts if r != rdflib.RDFS.label]
    assert {(a, b) for a, _, b in arrows} == {(a, b) for a, _, b in due}
    assert len(arrows) == len(set(due))
    assert {str(r) for _, r, _ in arrows} <= {"http://example.org/relation/" + r
                                              for r in ("R", "S%20%26%20%3C%C3%A9%3E", "an%2C%20%22other%22")}


def test_a_drawing_has_an_arrow_from_each_head_to_its_tail():
    pytest.importorskip("networkx")
    arrow = pytest.importorskip("matplotlib.text").Annotation
    due = [("a", r"$\no$", r"$\math$"), ("b", "S", "a"), ("d", "T", "d")]
    axes, = graph.drawn(due).axes
    place = {one.get_text(): tuple(one.get_position()) for one in axes.texts if one.get_va() == "bottom"}
    assert place.keys() == {"a", "b", "d", r"$\math$"}
    assert {tuple(line.get_xydata()[0]) for line in axes.lines} == {*place.values()}
    arrows = [(tuple(one.get_position()), tuple(one.xy)) for one in axes.texts if isinstance(one, arrow)]
    assert sorted(arrows) == sorted((place[head], place[tail]) for head, _, tail in due)
    assert {one.get_text() for one in axes.texts} == {"", r"$\no$", "S", "T", *place}
    assert axes.get_title() == "3 triples"
    assert graph.to_png(due).startswith(b"\x89PNG")
    assert graph.to_png([]).startswith(b"\x89PNG")


def test_of_many_triples_the_most_frequent_are_drawn():
    """One of a thousand twice, and it comes last; of the others, the first in the list."""
    pytest.importorskip("networkx")
    pytest.importorskip("matplotlib")
    many = [(f"a{i}", "R", f"b{i}") for i in range(1000)]
    figure = graph.drawn([*many, many[-1]])
    names = {one.get_text() for one in figure.axes[0].texts}
    assert {f"{of}{i}" for of in "ab" for i in (*range(graph.MAX_DRAWN - 1), 999)} == names - {"", "R"}
    said = f"the {graph.MAX_DRAWN} most frequent of 1,000 triples"
    assert figure.axes[0].get_title() == said
    assert graph.writer(Path("g.png"))([*many, many[-1]])[1] == said
    assert graph.writer(Path("g.csv"))([*many, many[-1]])[1] == "1,001 triples"


def test_a_drawing_grows_with_its_names_and_none_lie_on_each_other():
    """Whether they hang together or not: they are further apart than the 8 points that a name is high."""
    pytest.importorskip("networkx")
    pytest.importorskip("matplotlib")
    def joined(to, most=graph.MAX_DRAWN):
        return [(f"a{i}", "R", to(i)) for i in range(1, most + 1)]

    pairs = joined("b{}".format)
    for some in (pairs, joined(lambda i: "b"), joined(lambda i: f"a{i // 3}"), joined(lambda i: f"a{i - 1}")):
        places, wide, high = graph.laid_out(graph.graph_of(some))
        spots = np.array([*places.values()])
        assert ((spots >= 0) & (spots <= [wide, high])).all()
        apart = np.linalg.norm(spots[:, None] - spots, axis=-1)
        assert apart[~np.eye(len(spots), dtype=bool)].min() > 8 / 72
    areas = [np.prod(graph.drawn(pairs[:count]).get_size_inches()) for count in (1, 10, graph.MAX_DRAWN)]
    assert areas[0] < areas[1] < areas[2]


def test_a_file_without_triples_is_written_and_called_so(tmp_path):
    assert task.export(Path("g.csv"))([row()], [OTHER]) == (b"head,relation,tail\n",
                                                            "no triples, because every answer is Other,")


def test_another_suffix_and_an_absent_package_are_refused_at_once(monkeypatch):
    with pytest.raises(UserError, match=r"cannot write g.dot; its name must end in .csv, .jsonl, .graphml, .ttl, .png"):
        task.export(Path("g.dot"))
    packages = {"networkx": ".graphml", "rdflib": ".ttl", "matplotlib": ".png"}
    for package, suffix in packages.items():
        with monkeypatch.context() as patch:
            for other in packages:
                patch.setitem(sys.modules, other, None if other == package else ModuleType(other))
            with pytest.raises(UserError, match=rf"a {suffix} file needs {package}, which is not installed: pip"):
                task.export(Path("g" + suffix))
            assert task.export(Path("g.csv"))([], [])[0] == b"head,relation,tail\n"


def test_train_measure_and_export_from_the_command_line(tmp_path, capsys):
    data, run, export = tmp_path / "rows.txt", str(tmp_path / "run"), tmp_path / "g.csv"
    data.write_text(SENTENCES + SENTENCES)
    assert main(["finetune", "--task", "relations", "--data", str(data), "--model", "lstm", "--dev", "0.3",
                 "--out_dir", run, "--max_steps", "1", "--eval_steps", "1", "--batch_size", "2"]) == 0
    assert "(9+1)-way" in json.loads((tmp_path / "run/metrics.json").read_text())["variant"]
    capsys.readouterr()
    text = "The <e1>fire</e1> came from a <e2>stove</e2>."
    ask = ["predict", "--model", run, "--text", text, "--export", str(export)]
    assert main(ask) == 0
    out, err = capsys.readouterr()
    answer, = out.splitlines()
    content = "no triples, because every answer is Other," if answer == OTHER else "1 triple"
    assert err == f"wrote {content} to {export}\n"
    assert answer in ("Cause-Effect(e2,e1)", "Component-Whole(e1,e2)", "Other")
    due = [",".join(one) for one in triples([row(text=text)], [answer])]
    assert export.read_text().splitlines() == ["head,relation,tail", *due]
    assert main([*ask[:-1], str(tmp_path / "nowhere/g.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["predict", "--model", run, "--text", "no marks"]) == 2
    assert "input 1 is invalid: 'no marks' does not contain one marked entity <e1>" in capsys.readouterr().err
