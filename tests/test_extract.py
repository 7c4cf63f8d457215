"""Triples from raw texts, their files, and questions to them by SPARQL."""
import csv
import io
import json
import re
import sys

import pytest

from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks import classify, extract, finetune, graph, sparql
from pyllama.tasks.graph import Triple

# Sentences


@pytest.mark.parametrize(("text", "parts"), [
    ("One. Two! Three?", ["One.", "Two!", "Three?"]),
    (' "Yes." He left.  ', ['"Yes."', "He left."]),
    ("Dr. Lee met J. F. Smith. Then left", ["Dr. Lee met J. F. Smith.", "Then left"]),
    ("It costs 3.5 dollars, e.g. here. no. 5 is", ["It costs 3.5 dollars, e.g. here. no. 5 is"]),
    ("今天很好。他来了！再见", ["今天很好。", "他来了！", "再见"]),
    ("A title\n\nA text", ["A title", "A text"]),
    (" \n ", [])])
def test_sentences_end_where_a_reader_would_end_them(text, parts):
    assert [text[first:past] for first, past in extract.sentences(text)] == parts


# Extraction

PEOPLE, PLACES = ["Ann Lee", "Zoë", "Omar Khan"], ["Maine", "New York", "Berlin"]
SMALL = ["--vocab_size", "320", "--batch_size", "12", "--shards", "1", "--learning_rate", "0.01", "--warmup_steps", "4",
         "--eval_steps", "20"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tagger and of a model of relations: who lives in a place, and who left it."""
    folder = tmp_path_factory.mktemp("models")
    entities, relations = [], []
    for person in PEOPLE:
        for place in PLACES:
            for verb, name in (("lives in", "Live_In(e1,e2)"), ("left", "Other")):
                text = f"{person} {verb} {place}."
                start = text.index(place)
                spans = [[0, len(person), "PER"], [start, start + len(place), "LOC"]]
                entities.append({"text": text, "entities": spans})
                relations.append({"text": f"<e1>{person}</e1> {verb} <e2>{place}</e2>.", "relation": name})
            entities.append({"text": f"{place} is home to {person}.", "entities": [
                [0, len(place), "LOC"], [len(place) + 12, len(place) + 12 + len(person), "PER"]]})
            relations.append({"text": f"<e1>{place}</e1> is home to <e2>{person}</e2>.", "relation": "Live_In(e2,e1)"})
    for task, rows in (("tag", entities), ("relations", relations)):
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
        assert main(["finetune", "--task", task, "--model", "lstm", "--data", str(folder / f"{task}.jsonl"),
                     "--out_dir", str(folder / task), "--max_steps", "60", *SMALL]) == 0
        assert json.loads((folder / task / "metrics.json").read_text())["accuracy"] == 1
    return folder


TEXT = "Ann Lee lives in New York. Zoë left Maine.\n\nBerlin is home to Omar Khan."
TRIPLES = [("Ann Lee", "Live_In", "New York", "PER", "LOC"), ("Omar Khan", "Live_In", "Berlin", "PER", "LOC")]


def extract_into(models, path, *flags):
    (path.parent / "a.txt").write_text(TEXT)
    return main(["extract", "--data", str(path.parent / "a.txt"), "--tagger", str(models / "tag"), "--relations",
                 str(models / "relations"), "--out", str(path), *flags])


def test_texts_become_triples_in_the_relations_direction(models, tmp_path, capsys):
    assert extract_into(models, tmp_path / "t.csv") == 0
    assert "documents: 1, sentences: 3, entities: 6, pairs: 3\nwrote 2 triples" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text("utf-8"), newline="")))
    assert [(row["head"], row["relation"], row["tail"], row["head_type"], row["tail_type"]) for row in rows] == TRIPLES
    assert [row["sentence"] for row in rows] == ["Ann Lee lives in New York.", "Berlin is home to Omar Khan."]
    assert all(0.5 < float(row["score"]) <= 1 for row in rows)
    assert {row["document"] for row in rows} == {str(tmp_path / "a.txt")}
    assert main(["extract", "--data", str(tmp_path / "a.txt"), "--tagger", str(models / "tag"), "--relations",
                 str(models / "relations")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["head"], line["tail"]) for line in lines] == [(triple[0], triple[2]) for triple in TRIPLES]
    assert extract_into(models, tmp_path / "NONE.CSV", "--min_score", "1.0") == 0
    assert "wrote no triples to" in capsys.readouterr().out


def test_a_graph_answers_questions(models, tmp_path, capsys):
    pytest.importorskip("rdflib")
    assert extract_into(models, tmp_path / "t.ttl") == 0
    capsys.readouterr()
    ask = ["graph", str(tmp_path / "t.ttl")]
    assert main([*ask, "SELECT * WHERE { ?who rel:Live_In ?where . ?who a type:PER } ORDER BY ?who"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["who", "where"]
    assert lines[2:] == [["Ann", "Lee", "New", "York"], ["Omar", "Khan", "Berlin"]]
    assert main([*ask, "SELECT ?a ?b WHERE { ?a ?r ?b }", "--limit", "1"]) == 0
    assert "the first 1 rows; there are more: raise limit, or write all of them with out" in capsys.readouterr().out
    assert main([*ask, "ASK { ent:Berlin a type:LOC }"]) == 0
    assert "yes" in capsys.readouterr().out
    assert main([*ask, "SELECT ?x WHERE { ?x rel:Work_For ?y }"]) == 0
    assert "no rows" in capsys.readouterr().out
    assert main([*ask, "SELECT ?who (COUNT(?b) AS ?n) WHERE { ?who rel:Live_In ?b } GROUP BY ?who ORDER BY ?who",
                 "--out", str(tmp_path / "n.csv")]) == 0
    assert (tmp_path / "n.csv").read_text() == "who,n\nAnn Lee,1\nOmar Khan,1\n"
    assert main([*ask, "CONSTRUCT { ?a rdfs:seeAlso ?b } WHERE { ?a rel:Live_In ?b }"]) == 0
    assert "seeAlso" in capsys.readouterr().out


@pytest.mark.parametrize(("query", "message"), [
    ("SELEC ?x", "this is not a valid SPARQL query: Expected .*, found 'SELEC'"),
    ("SELECT ?x WHERE { ?x foo:bar ?y }", "Unknown namespace prefix : foo; write it as in 'SELECT"),
    ("INSERT DATA { <a:a> <a:b> <a:c> }", "this is not a valid SPARQL query"),
    ("", "this is not a valid SPARQL query"),
    ("SELECT ?x WHERE { SERVICE <http://a.example/> { ?x ?y ?z } }", "names other graphs .*fetched from the network"),
    ("SELECT ?x WHERE { ?x ?y ?z FILTER EXISTS { SERVICE <http://a.example/> { ?x ?y ?z } } }", "names other graphs"),
    ("SELECT ?x FROM <http://a.example/> WHERE { ?x ?y ?z }", "names other graphs"),
    ("SELECT ?x WHERE {" * 500, "the query is nested too deeply|not a valid SPARQL query")])
def test_a_query_that_cannot_be_asked_is_refused(query, message, tmp_path, capsys):
    pytest.importorskip("rdflib")
    (tmp_path / "t.ttl").write_bytes(graph.to_turtle([("a", "R", "b")]))
    assert main(["graph", str(tmp_path / "t.ttl"), query]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.ttl", "ent:a ent:b", r"a\.ttl is not Turtle: .*; fix it"), ("a.nt", "a b c", r"a\.nt is not N-Triples: "),
    ("a.csv", "a,b,c\n", r"is not a graph that can be queried; give a file with the ending \.ttl or \.nt"),
    ("a.ttl", None, r"cannot read .*a\.ttl: No such file or directory; give a \.ttl file")])
def test_a_file_that_is_not_a_graph_is_refused(name, content, message, tmp_path):
    pytest.importorskip("rdflib")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        sparql.load(tmp_path / name)


def test_without_rdflib_the_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rdflib", None)
    assert main(["graph", str(tmp_path / "a.ttl"), "ASK {}"]) == 2
    assert "the command graph needs rdflib, which is not installed: pip install" in capsys.readouterr().err


def test_a_variable_may_have_the_name_of_a_method(tmp_path):
    """rdflib's row is a tuple, with the methods count and index."""
    pytest.importorskip("rdflib")
    (tmp_path / "t.ttl").write_bytes(graph.to_turtle([("a", "R", "b"), ("a", "R", "c")]))
    query = "SELECT (COUNT(?o) AS ?count) (MAX(?o) AS ?index) ?labels { ?s rel:R ?o }"
    answer = sparql.ask(sparql.load(tmp_path / "t.ttl"), query)
    assert (answer.names, [*answer.rows]) == (["count", "index", "labels"], [["2", "c", ""]])


def test_a_huge_answer_is_not_computed_whole(tmp_path):
    """300 entities have 27 million triples of them; the first 5 are read."""
    pytest.importorskip("rdflib")
    (tmp_path / "t.ttl").write_bytes(graph.to_turtle([(f"a{i}", "R", "b") for i in range(300)]))
    rows = sparql.ask(sparql.load(tmp_path / "t.ttl"), "SELECT * { ?a rel:R ?x . ?b rel:R ?x . ?c rel:R ?x }").rows
    assert len([next(rows) for _ in range(5)]) == 5


def test_models_of_other_tasks_are_refused(models, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    swapped = ["extract", "--data", str(tmp_path / "a.txt"), "--tagger", str(models / "relations"), "--relations",
               str(models / "tag")]
    assert main(swapped) == 2
    assert "tagger was trained on the task relations; give a run of finetune with task tag" in capsys.readouterr().err
    assert extract_into(models, tmp_path / "t.xls") == 2
    assert "cannot write" in capsys.readouterr().err
    assert extract_into(models, tmp_path / "t.csv", "--min_score", "2") == 2
    assert capsys.readouterr().err == "pyllama: min_score is 2.0; it must lie between 0 and 1\n"


def test_notes_are_not_among_the_triples(models, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    load = finetune.load
    monkeypatch.setattr(finetune, "load", lambda path: (*load(path)[:2], ("a note",)))
    assert main(["extract", "--data", str(tmp_path / "a.txt"), "--tagger", str(models / "tag"), "--relations",
                 str(models / "relations")]) == 0
    printed = capsys.readouterr()
    assert {json.loads(line)["relation"] for line in printed.out.splitlines()} == {"Live_In"}
    assert printed.err == "a note\na note\n"


def test_a_pair_that_is_too_far_apart_is_cut_or_left_out(models):
    _, model, _ = finetune.load(models / "relations")
    row = extract.Row("", {"text": "word " * 300 + "Ann Lee lives in Maine." + " word" * 300})
    one, other = ({"start": row.values["text"].index(name), "end": row.values["text"].index(name) + len(name)}
                  for name in ("Ann Lee", "Maine"))
    last = {"start": len(row.values["text"]) - 4, "end": len(row.values["text"])}
    near, far = extract.fitting([(row, one, other), (row, one, last)], model)
    assert near == "<e1>Ann Lee</e1> lives in <e2>Maine</e2>"
    assert far is None
    (length,) = classify.lengths([extract.Row("", {"text": near})], model)
    assert length <= model.max_length


def test_the_pairs_of_a_long_list_grow_with_its_length(monkeypatch):
    """30 entities: each is paired with the 20 behind it, as far as there are so many."""
    entities = [{"start": 2 * i, "end": 2 * i + 1, "label": "X"} for i in range(30)]
    monkeypatch.setattr(extract.tag, "predict", lambda rows, model: [extract.tag.Tagging([], entities) for _ in rows])
    monkeypatch.setattr(extract, "of_pairs", lambda pairs, *others: [pairs])
    (found,) = extract.extracted([("d", "a " * 30)], extract.Reader(None, None))
    assert sum(map(len, found.triples)) == sum(min(20, 29 - i) for i in range(30)) == 390


def test_marks_in_a_text_are_no_entities():
    text = extract.without_marks("An <e1>Ann</e1> in Maine")
    marked = extract.mark(text, {"start": 7, "end": 10}, {"start": 19, "end": 24})
    assert marked == "An (e1)<e1>Ann</e1>(/e1) in <e2>Maine</e2>"


# Files

def test_a_file_has_the_fields_that_some_triple_has():
    triples = [Triple("a", "R", "b", "X", "Y", 0.5, "doc"), ("b", "S", "c")]
    assert graph.to_csv(triples).decode() == ("head,relation,tail,head_type,tail_type,score,document\n"
                                              "a,R,b,X,Y,0.5,doc\nb,S,c,,,,\n")
    assert graph.to_csv([triples[1]]).decode() == "head,relation,tail\nb,S,c\n"
    assert [json.loads(line) for line in graph.to_json_lines(triples).splitlines()] == [
        {"head": "a", "relation": "R", "tail": "b", "head_type": "X", "tail_type": "Y", "score": 0.5,
         "document": "doc"},
        {"head": "b", "relation": "S", "tail": "c"}]


def test_entities_have_their_types():
    pytest.importorskip("networkx")
    pytest.importorskip("rdflib")
    triples = [Triple("a", "R", "b", "X", "Y"), Triple("a", "S", "b", "Z", "Y"), Triple("b", "R", "a", "Y", "X")]
    assert {name: data["type"] for name, data in graph.graph_of(triples).nodes(data=True)} == {"a": "X", "b": "Y"}
    turtle = graph.to_turtle(triples).decode()
    assert re.search(r"ent:a a type:X,\s+type:Z ;", turtle)
    assert "ent:b a type:Y ;" in turtle
