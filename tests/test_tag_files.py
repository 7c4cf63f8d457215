"""Words and their tags from files: columns, lists of words, spans; the schemes of tags."""
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.tasks import tag
from pyllama.tasks.rows import Source
from pyllama.tasks.tag_files import scheme_of, to_bio
from tests.tagged import tagged


def read(path, text, fields=(), answer=True, **how):
    path.write_text(text, encoding="utf-8")
    return tag.task.read(Source(path, fields, **how), answer)[0]

BIO = [[("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC"), ("call", "O"), (".", "O")],
       [("Ann", "B-PER"), ("Lee", "I-PER"), ("Bo", "B-PER")]]
SCHEMES = {
    "BIO": ["B-ORG O B-MISC O O", "B-PER I-PER B-PER"],
    "IOB1": ["I-ORG O I-MISC O O", "I-PER I-PER B-PER"],
    "BIOES": ["S-ORG O S-MISC O O", "B-PER E-PER S-PER"],
    "BILOU": ["U-ORG O U-MISC O O", "B-PER L-PER U-PER"]}
WORDS = [[word for word, _ in sentence] for sentence in BIO]
NAMES = [["NNP", "VBZ", "JJ", "NN", "."], ["NNP", "NNP", "NNP"]]


def columns(scheme, between, separator, end="\n"):
    """Sentences in columns, with so many columns between word and tag."""
    return (end * 2).join(end.join(separator.join([word, *[name] * between, label]) for word, name, label in
                                   zip(words, names, tags.split(), strict=True))
                          for words, names, tags in zip(WORDS, NAMES, SCHEMES[scheme], strict=True)) + end


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("between", [0, 1, 2])
@pytest.mark.parametrize(("separator", "end"), [("\t", "\n"), (" ", "\n"), ("   ", "\r\n")])
def test_columns_of_any_scheme_give_bio(tmp_path, scheme, between, separator, end):
    head = "-DOCSTART- -X- O O\n\n" if separator == " " else ""
    rows = read(tmp_path / "a.conll", head + columns(scheme, between, separator, end))
    assert tagged(rows) == BIO
    assert rows[0].values["text"] == "EU rejects German call ."
    assert [row.place for row in rows] == [f"{tmp_path}/a.conll line {n + head.count(chr(10))}" for n in (1, 7)]


def test_columns_are_chosen_by_number_or_name(tmp_path):
    rows = read(tmp_path / "a.conll", columns("BIO", 2, " "), ("1", "3"))
    assert [[name for _, name in sentence] for sentence in tagged(rows)] == NAMES
    headed = "word\tpos\tner\nEU\tNNP\tB-ORG\n"
    assert tagged(read(tmp_path / "a.tsv", headed)) == [[("EU", "B-ORG")]]
    assert tagged(read(tmp_path / "a.tsv", headed, ("word", "pos"))) == [[("EU", "NNP")]]
    with pytest.raises(UserError, match=r"fields names word and upos, which are not columns of .*; give the numbers"):
        read(tmp_path / "a.tsv", headed, ("word", "upos"))


def test_conll_u_and_the_multi_head_form_have_their_own_columns(tmp_path):
    lines = ["# text = Don't go", "1-2\tDon't" + "\t_" * 8, "1\tDo\tdo\tAUX\tVB" + "\t_" * 5,
             "2\tn't\tnot\tPART\tRB" + "\t_" * 5, "2.1\tx" + "\t_" * 8, "3\tgo\tgo\tVERB\tVB" + "\t_" * 5, ""]
    assert tagged(read(tmp_path / "a.conllu", "\n".join(lines))) == [[("Do", "AUX"), ("n't", "PART"), ("go", "VERB")]]
    assert tagged(read(tmp_path / "a.conllu", "\n".join(lines), ("form", "xpos")))[0][1] == ("n't", "RB")
    two = "#doc 1\n0\tAnn\tB-Peop\t['N']\t[0]\n#doc 2\n0\tin\tO\t['N']\t[0]\n1\tMaine\tB-Loc\t['N']\t[1]\n"
    assert tagged(read(tmp_path / "a.conll", two)) == [[("Ann", "B-Peop")], [("in", "O"), ("Maine", "B-Loc")]]


SPANS = [{"start": 0, "end": 3, "label": "PER"}, {"start": 14, "end": 17, "label": "LOC"}]


@pytest.mark.parametrize("values", [
    {"text": "Ann, moved to 北京市.", "entities": SPANS}, {"text": "Ann, moved to 北京市.", "spans": SPANS[::-1]},
    {"text": "Ann, moved to 北京市.", "entities": [[0, 4 - 1, "PER"], [13, 17, "LOC"]]},     # a space is cut off
    {"text": "Ann, moved to 北京市.", "label": [[0, 3, "PER"], [14, 17, "LOC"]], "id": 7},
    {"sentence": "Ann, moved to 北京市.", "ents": SPANS},
    {"text": "Ann, moved to 北京市.", "tokens": [{"text": "Ann", "start": 0}], "spans": SPANS},         # Prodigy
    {"text": "Ann, moved to 北京市.", "label": [{"start": 0, "end": 3, "labels": ["PER"]}, [14, 17, "LOC"]]},
    {"text": "Ann, moved to 北京市.", "entities": [
        {"start_offset": one["start"], "end_offset": one["end"], "label": one["label"]} for one in SPANS]},
    ["Ann, moved to 北京市.", {"entities": [[0, 3, "PER"], [14, 17, "LOC"]]}]])
def test_spans_give_the_tags_of_words_and_of_characters_without_spaces(tmp_path, values):
    expected = [[("Ann", "B-PER"), (",", "O"), ("moved", "O"), ("to", "O"), ("北", "B-LOC"), ("京", "I-LOC"),
                 ("市", "I-LOC"), (".", "O")]]
    assert tagged(read(tmp_path / "a.jsonl", json.dumps(values))) == expected
    assert tagged(read(tmp_path / "a.json", json.dumps([values]))) == expected


def test_an_entity_may_end_inside_a_word(tmp_path):
    rows = read(tmp_path / "a.jsonl", json.dumps({"text": "pro-EUstance", "entities": [[4, 6, "ORG"]]}))
    assert tagged(rows) == [[("pro", "O"), ("-", "O"), ("EU", "B-ORG"), ("stance", "O")]]


def test_a_text_may_have_a_tag_for_each_word_between_spaces(tmp_path):
    lines = [json.dumps({"text": " ".join(words), "tags": tags.split()}) for words, tags in
             zip(WORDS, SCHEMES["IOB1"], strict=True)]
    assert tagged(read(tmp_path / "a.jsonl", "\n".join(lines))) == BIO
    with pytest.raises(UserError, match="it has 2 words but 1 tags"):
        read(tmp_path / "a.jsonl", json.dumps({"text": "a b", "tags": ["O"]}))


@pytest.mark.parametrize("fields", [(), ("words", "ner"), ("Wort", "Art")])
def test_lists_of_words_may_have_other_names(tmp_path, fields):
    names = fields or ("tokens", "tags")
    lines = [json.dumps(dict(zip(names, (words, tags.split()), strict=True), id=3)) for words, tags in
             zip(WORDS, SCHEMES["IOB1"], strict=True)]
    rows = read(tmp_path / "a.jsonl", "\n".join(lines), fields)
    assert tagged(rows) == BIO
    assert rows[0].given["id"] == 3
    assert rows[0].given[names[1]] == ["I-ORG", "O", "I-MISC", "O", "O"]       # as in the file


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.conll", "a B-X\nb I-Y\n", r"line 2: the tag 'I-Y' after 'B-X' breaks a rule of the scheme BIO, which this file "
                                  r"has: I- continues a span of the same label"),
    ("a.conll", "a I-X\nb I-X\n\nc O\nd I-Y\ne B-X\n", r"line 6: the tag 'B-X' after 'I-Y' .* IOB1"),
    ("a.conll", "a B-X\nb O\nc S-X\n", r"line 1: the tag 'B-X' after 'the beginning' .* BIOES.*: a span ends with E-"),
    ("a.conll", "a B-X\nb\n", r"line 2: it has 1 column instead of 2"),
    ("a.conll", "a\n", r"line 1: it has 1 column instead of 2"),
    ("a.conll", "a\tB-X\n\tO\n", r"line 2: it has no word or no tag"),
    ("a.conll", "a B-X\nb PER\nc O\n", r"line 2: the tag 'PER' is not O, B-NAME or I-NAME"),
    ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}', r"line 1: it has 1 words but 2 tags"),
    ("a.jsonl", '{"tokens": ["a"], "tags": [3]}', r"the tags \[3\] are numbers; write the name of each, such as B-PER"),
    ("a.jsonl", '{"tokens": ["a"], "tags": "O"}', r"the tags 'O' are not a list of names"),
    ("a.jsonl", '{"tokens": ["a", " "], "tags": ["O", "O"]}', r"is not a list of words"),
    ("a.jsonl", '{"text": "ab"}', r"line 1: it has no field 'entities', only text; choose others with fields"),
    ("a.jsonl", '{"text": "ab", "entities": [[0, 3, "X"]]}', r"covers nothing of a text of 2 characters"),
    ("a.jsonl", '{"text": "a b", "entities": [[1, 2, "X"]]}', r"covers nothing of"),
    ("a.jsonl", '{"text": "a b", "entities": [[0, 2, "X"], [0, 3, "Y"]]}',
     r"the entities X and Y overlap at character 0"),
    ("a.jsonl", '{"text": "a b", "entities": [{"start": 0, "label": "X"}]}', r"has no start, end and label"),
    ("a.jsonl", '{"text": "a b", "entities": [{"start": 0, "end": 1, "label": "X", "text": "b"}]}',
     r"'b' does not stand at 0 to 1 of its text, which has 'a' there"),
    ("a.jsonl", "[1]", r"line 1: it is not an object"),
    ("a.conll", "", r"a\.conll has no valid row; give a file with text, tags"),
    ("a.csv", "text,tags\n", r"is a \.csv, which has no form for tagged words; save a word and its tag a line"),
])
def test_a_bad_row_is_located(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, text)


def test_a_txt_without_tags_has_a_text_a_line(tmp_path):
    rows = read(tmp_path / "a.txt", "Ann lives in Maine.\n\nShe left.\n", answer=False)
    assert [row.values["text"] for row in rows] == ["Ann lives in Maine.", "She left."]
    assert [row.place for row in rows] == [f"{tmp_path}/a.txt line {n}" for n in (1, 3)]
    rows = read(tmp_path / "a.txt", "Ann B-PER\nlives O\n\nBo B-PER\n", answer=False)
    assert [row.values["text"] for row in rows] == ["Ann lives", "Bo"]
    rows = read(tmp_path / "a.conll", "Ann\nlives\n\nBo\n", answer=False)
    assert [row.values["text"] for row in rows] == ["Ann lives", "Bo"]


def test_bad_rows_may_be_skipped(tmp_path):
    (tmp_path / "a.conll").write_text("a B-X\n\nb I-X\n\nc B-Y\nd I-Y\n")
    rows, notes = tag.task.read(Source(tmp_path / "a.conll", bad_rows="skip"))
    assert tagged(rows) == [[("a", "B-X")], [("c", "B-Y"), ("d", "I-Y")]]
    assert notes[0] == "1 of 3 rows skipped:"
    assert "a.conll line 3: the tag 'I-X'" in notes[1]


spans = st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["", "X", "Y"])), min_size=1, max_size=6)
LETTERS = {"BIO": "BBII", "IOB1": "IIII", "BIOES": "SBIE", "BILOU": "UBIL"}      # alone, first, inside, last


def written(spans, scheme):
    """The tags of spans (length, label) in a scheme."""
    alone, first, inner, last = LETTERS[scheme]
    tags, before = [], ""
    for length, label in spans:
        letters = alone if length == 1 else first + inner * (length - 2) + last
        if scheme == "IOB1" and before == label:
            letters = "B" + letters[1:]
        tags += [f"{letter}-{label}" for letter in letters] if label else ["O"] * length
        before = label
    return tags


@given(st.lists(spans, min_size=1, max_size=3))
def test_every_scheme_says_the_same(sentences):
    for scheme in LETTERS:
        sequences = [written(one, scheme) for one in sentences]
        found = scheme_of(sequences)
        expected = [written(one, "BIO") for one in sentences]
        if found in (scheme, "BIOES"):                          # without a span of one word, IOB1 may look like BIO
            assert [to_bio(tags, found) for tags in sequences] == expected
        assert [tag.spans_of(tags) for tags in sequences] == [tag.spans_of(tags) for tags in expected]
