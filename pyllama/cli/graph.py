"""The commands extract and graph: triples from texts, and queries of them."""
import itertools
from collections import Counter
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from pyllama import files, memory
from pyllama.cli.output import console, emit, note
from pyllama.errors import UserError, counted
from pyllama.tasks import extract as extraction
from pyllama.tasks import finetune, sparql
from pyllama.tasks import graph as graphs
from pyllama.tasks.answers import Table as Rows
from pyllama.tasks.answers import format_of
from pyllama.text import corpus


def extract(data: tuple[str, ...], tagger: Path, relations: Path, out: Path | None = None, field: str = "text",
            min_score: float = 0.0) -> int:
    """Extract triples from texts: the entities of each sentence, and the relation of every two of them.

    Args:
        data: files, folders, patterns, "-" or "python-docs"
        tagger: a run of finetune with --task tag, which finds the entities
        relations: a run of finetune with --task relations
        out: file to write: .ttl, .graphml, .csv, .jsonl, or .png (default: JSON lines on standard output)
        field: field of a .jsonl file that holds the text
        min_score: leave out relations with a lower probability
    """
    if not 0 <= min_score <= 1:
        raise UserError(f"min_score is {min_score}; it must lie between 0 and 1")
    write = graphs.writer(out) if out else None
    say = console.print if out else note                    # the triples go to standard output
    memory.install()
    models = [finetune.load(path) for path in (tagger, relations)]
    reader = extraction.reader(*models)
    for _, _, notes in models:
        for sentence in notes:
            say(sentence)
    triples: list[graphs.Triple] = []
    counts: Counter = Counter()
    for found in extraction.extracted(corpus.documents(data, field), reader, min_score):
        counts += found.counts
        if write:
            triples += found.triples
        else:
            emit(graphs.to_json_lines(found.triples).decode(), end="")
    if far := counts["too far apart"]:
        say(f"{far:,} pairs left out: they are farther apart than the {reader.relations.max_length} tokens that the "
            f"model of the relations reads")
    if not (out and write):
        return 0
    content, description = write(triples)
    files.export(out, [content])
    console.print(", ".join(f"{name}: {counts[name]:,}" for name in ("documents", "sentences", "entities", "pairs")))
    console.print(f"wrote {description if triples else 'no triples'} to {out}")
    return 0


def graph(file: Path, query: str, /, limit: int = 100, out: Path | None = None) -> int:
    """Query a graph of triples with SPARQL, and print the answer as a table.

    The prefixes ent:, rel:, type: and rdfs: need no declaration:
    pyllama graph triples.ttl 'SELECT ?who ?where WHERE { ?who rel:Live_In ?where }'

    Args:
        file: a .ttl file, such as one written by `pyllama extract`
        query: a SPARQL query: SELECT, ASK, CONSTRUCT or DESCRIBE
        limit: rows of the answer to print
        out: file for the whole answer: .jsonl, .json, .csv or .tsv
    """
    if limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1")
    write = format_of(out, as_lines) if out else None
    answer = sparql.ask(sparql.load(file), query)
    rows = list(answer.rows if write else itertools.islice(answer.rows, limit + 1))
    if out and write:
        files.export(out, [write([dict(zip(answer.names, row, strict=True)) for row in rows]).encode()])
        console.print(f"wrote {counted(len(rows), 'row')} to {out}")
        return 0
    table = Table(*answer.names, box=SIMPLE)
    for row in rows[:limit]:
        table.add_row(*row)
    console.print(table, soft_wrap=False)
    if len(rows) > limit:
        console.print(f"the first {limit:,} rows; there are more: raise limit, or write all of them with out")
    elif not rows:
        console.print("no rows")
    return 0


def as_lines(table: Rows) -> str:
    """The rows as lines of cells, separated by tabs."""
    return "".join("\t".join(map(str, row.values())) + "\n" for row in table)
