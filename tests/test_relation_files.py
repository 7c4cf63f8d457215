"""Relations from files in the multi-head format: their rows, their directions, and errors."""
import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks.relation_files import OTHER, multi_head
from pyllama.tasks.relations import task, triples
from pyllama.tasks.rows import Row, Source, read

MAINE = """#doc 17
0\tIn\tO\t['N']\t[0]
1\tMaine\tB-Loc\t['N']\t[1]
2\tAnn\tB-Peop\t['N']\t[2]
3\tSmith\tI-Peop\t['Live_In', 'Work_For']\t[1, 6]
4\tleft\tO\t['N']\t[4]
5\tOld\tB-Org\t['N']\t[5]
6\tMill\tI-Org\t['N']\t[6]
#doc 18
0\tBo\tB-Peop\t['N']\t[0]
"""
BARE = "".join("\t".join(line.split("\t")[:3]) + "\n" for line in MAINE.splitlines())


def loaded_with_notes(path, content, answer=True, **how):
    path.write_text(content)
    return read(Source(path, **how), task.fields, task.usable if answer else task.askable, task.readers, answer)


def loaded(*args, **how):
    return loaded_with_notes(*args, **how)[0]


def test_every_two_things_of_a_document_make_a_row(tmp_path):
    path = tmp_path / "a.conll"
    rows = loaded(path, MAINE)
    assert [row.values for row in rows] == [
        {"text": "In <e1>Maine</e1> <e2>Ann Smith</e2> left Old Mill", "relation": "Live_In(e2,e1)"},
        {"text": "In <e1>Maine</e1> Ann Smith left <e2>Old Mill</e2>", "relation": "Other"},
        {"text": "In Maine <e1>Ann Smith</e1> left <e2>Old Mill</e2>", "relation": "Work_For(e1,e2)"}]
    assert [row.place for row in rows] == [f"{path} line {n}" for n in (3, 3, 4)]
    assert triples(rows, [row.values["relation"] for row in rows]) == [
        ("Ann Smith", "Live_In", "Maine"), ("Ann Smith", "Work_For", "Old Mill")]


def test_two_entities_may_have_several_relations_each_listed_once(tmp_path):
    rows = loaded(tmp_path / "a.conll", "#doc 1\r\n"
                  "0\ta\tB-X\t['R', 'S', 'R']\t[1, 1, 2]\r\n"       # the two R are one: 1 and 2 are of the same thing
                  "1\tb\tB-X\t['R']\t[0]\r\n"
                  "2\tb\tI-X\t['N']\t[2]\r\n"
                  "3\tc\tI-Y\t[]\t[]\r\n")                          # another kind begins another thing
    assert [(row.values["text"], row.values["relation"]) for row in rows] == [
        ("<e1>a</e1> <e2>b b</e2> c", "R(e1,e2)"), ("<e1>a</e1> <e2>b b</e2> c", "S(e1,e2)"),
        ("<e1>a</e1> <e2>b b</e2> c", "R(e2,e1)"), ("<e1>a</e1> b b <e2>c</e2>", "Other"),
        ("a <e1>b b</e1> <e2>c</e2>", "Other")]


@st.composite
def documents(draw):
    """(how many words each thing has, {(from, to, name)})"""
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=5))
    ends = st.lists(st.integers(0, len(sizes) - 1), min_size=2, max_size=2, unique=True)
    return sizes, {(*one, name) for one, name in draw(st.lists(st.tuples(ends, st.sampled_from("RS")), max_size=6))}


@given(st.lists(documents(), min_size=1, max_size=3), st.booleans())
def test_all_relations_come_back_and_no_pair_is_missed(given_documents, apart):
    lines, due, others = [], [], []
    for number, (sizes, relations) in enumerate(given_documents):
        lines.append(f"#doc {number}")
        names, last, words = [], [], []
        for thing, size in enumerate(sizes):
            words += [(f"d{number}t{thing}w{i}", "B-X" if i == 0 else "I-X") for i in range(size)]
            names.append(" ".join(word for word, _ in words[-size:]))
            last.append(len(words) - 1)
            words += [("and", "O")] * apart
        for i, (word, tag) in enumerate(words):
            own = [(name, last[b]) for a, b, name in relations if last[a] == i] or [("N", i)]
            lines.append(f"{i}\t{word}\t{tag}\t{[name for name, _ in own]}\t{[head for _, head in own]}")
        due += [(names[a], name, names[b]) for a, b, name in relations]
        related = {frozenset(one[:2]) for one in relations}
        others += [(names[a], names[b]) for a, b in combinations(range(len(sizes)), 2) if {a, b} not in related]
    rows = [Row(*row) for row in multi_head(Path("a"), "\n".join(lines), task.fields, 0)]
    labels = [row.values["relation"] for row in rows]
    assert sorted(triples(rows, labels)) == sorted(due)
    unrelated = [row for row, relation in zip(rows, labels, strict=True) if relation == OTHER]
    assert [one[::2] for one in triples(unrelated, ["R"] * len(unrelated))] == others


@pytest.mark.parametrize(("line", "by", "reason"), [
    (3, "1\tMaine\tB-Loc", "it has 3 columns instead of 5: number, word, tag, relations, heads"),
    (3, "1\tMaine\tB-Loc\t['N']\t[1]\tmore", "it has 6 columns instead of 5"),
    (3, "1\tMaine\tLoc\t['N']\t[1]", "the tag 'Loc' is not O, B-NAME or I-NAME"),
    (5, "3\tSmith\tI-Peop\t['Live_In', 'Kill']\t[1]", r"it has 2 relations, \['Live_In', 'Kill'\], but 1 heads, \[1\]"),
    (5, "3\tSmith\tI-Peop\t['Live_In']\t[4]", "Live_In goes from token 3 to token 4, but only tokens tagged"),
    (5, "3\tSmith\tI-Peop\t['Live_In']\t[9]", "Live_In goes from token 3 to token 9, but only"),
    (6, "4\tleft\tO\t['Live_In']\t[1]", "Live_In goes from token 4 to token 1, but only"),
    (5, "3\tSmith\tI-Peop\t['Live_In']\t[2]", "Live_In goes from an entity to itself, token 2"),
    (9, "", "there is a token 0 above it; begin each document with a line #doc"),
])
def test_a_bad_line_is_reported_with_its_number_and_costs_its_document(tmp_path, line, by, reason):
    lines = MAINE.splitlines()
    lines[line - 1] = by
    content, place = "\n".join([*lines, *MAINE.splitlines()]), line + (line == 9)
    with pytest.raises(UserError, match=rf"a\.conll line {place}: {reason}"):
        loaded(tmp_path / "a.conll", content)
    rows, notes = loaded_with_notes(tmp_path / "a.conll", content, bad_rows="skip")
    assert len(rows) == 3                                                       # those of the second time
    assert notes[0] == "1 of 4 rows skipped:"
    assert notes[1].startswith(f"  {tmp_path}/a.conll line {place}: ")


def test_a_document_of_very_many_pairs_is_refused(tmp_path):
    """200 entities give 19,900 rows; a file of kilobytes could ask for gigabytes."""
    def document(count):
        return "#doc 1\n" + "".join(f"{i}\tw\tB-Loc\t['N']\t[{i}]\n" for i in range(count))

    assert len(loaded(tmp_path / "a.conll", document(200))) == 19_900
    with pytest.raises(UserError, match=r"line 2: its document has 201 entities, .*; begin a document with a l"):
        loaded(tmp_path / "a.conll", document(201))
    assert len(loaded(tmp_path / "a.conll", document(3000) + MAINE, bad_rows="skip")) == len(
        loaded(tmp_path / "b.conll", MAINE))


def test_a_mark_among_the_words_costs_the_rows_alone(tmp_path):
    with pytest.raises(UserError, match=r"a\.conll line 3: .* does not contain one marked entity <e2>"):
        loaded(tmp_path / "a.conll", MAINE.replace("left", "<e2>"))


@pytest.mark.parametrize("content", [MAINE, BARE], ids=["answers", "no answers"])
def test_a_question_is_every_two_things_once(tmp_path, content):
    """Also where two things have two relations."""
    content = content.replace("['Live_In', 'Work_For']\t[1, 6]", "['Live_In', 'Work_For']\t[1, 1]")
    rows = loaded(tmp_path / "a.conll", content, answer=False)
    assert [row.values for row in rows] == [{"text": row.values["text"]}
                                            for row in loaded(tmp_path / "b.conll", MAINE)]


def test_train_and_predict_from_the_command_line(tmp_path, capsys):
    (tmp_path / "a.conll").write_text(MAINE * 3)
    (tmp_path / "bare.conll").write_text(BARE)
    assert main(["finetune", "--task", "relations", "--data", str(tmp_path / "a.conll"), "--model", "lstm", "--dev",
                 "0.3", "--out_dir", str(tmp_path / "run"), "--max_steps", "1", "--batch_size", "2"]) == 0
    capsys.readouterr()
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(tmp_path / "bare.conll")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == [row.values["text"] for row in loaded(tmp_path / "b.conll", MAINE)]
    assert {row["relation"] for row in rows} <= {"Live_In(e2,e1)", "Work_For(e1,e2)", "Other"}


def test_the_case_of_a_files_ending_does_not_matter(tmp_path):
    """SemEval's own is TRAIN_FILE.TXT."""
    path = tmp_path / "TRAIN_FILE.TXT"
    path.write_text('1\t"The <e1>cup</e1> holds <e2>tea</e2>."\nContent-Container(e2,e1)\nComment:\n\n')
    (row,), _ = read(Source(path), task.fields, task.usable, task.readers)
    assert row.values["relation"] == "Content-Container(e2,e1)"
