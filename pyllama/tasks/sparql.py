"""Query a graph of triples with SPARQL, through rdflib.  Nothing is fetched from the network."""
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from pyllama.errors import UserError, optional
from pyllama.tasks.graph import NAMESPACES

FORMATS = {".ttl": "turtle", ".nt": "nt"}


class Answer(NamedTuple):
    """The answer to a query: rows of a table, whose cells are texts."""
    names: list[str]
    rows: Iterator[list[str]]                               # computed as they are read; a query may have very many


def load(path: Path) -> Any:
    """The rdflib graph in a .ttl or .nt file.  Raises UserError if it cannot be read."""
    rdflib = optional("rdflib", "the command graph")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} is not a graph that can be queried; give a file with the ending "
                        f"{' or '.join(FORMATS)}, such as one written by `pyllama extract`")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a .ttl file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    try:
        return rdflib.Graph().parse(data=content, format=FORMATS[path.suffix.lower()])
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; write its triples one by one") from None
    except Exception as error:                              # each of rdflib's parsers raises its own
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not {'Turtle' if path.suffix.lower() == '.ttl' else 'N-Triples'}: {reason[:200]}; "
                        f"fix it") from None


def ask(graph: Any, query: str) -> Answer:
    """The answer to a SPARQL query: SELECT, ASK, CONSTRUCT or DESCRIBE.

    The prefixes of the file may be used without a declaration, and ent:, rel:, type: and rdfs: as well.  Raises
    UserError if the query is not SPARQL, or would fetch other graphs.
    """
    sparql = optional("rdflib.plugins.sparql", "the command graph")
    prefixes = {**NAMESPACES, **{prefix: str(space) for prefix, space in graph.namespaces()}}
    try:
        prepared = sparql.prepareQuery(query, initNs=prefixes)
    except RecursionError:
        raise UserError("the query is nested too deeply; simplify it") from None
    except Exception as error:                              # its parser and its translation raise their own
        reason = " ".join(str(error).split())
        raise UserError(f"this is not a valid SPARQL query: {reason[:200]}; write it as in 'SELECT ?who WHERE "
                        f"{{ ?who rel:Live_In ?where }}'") from None
    if prepared.algebra.datasetClause or "ServiceGraphPattern" in set(parts(prepared.algebra)):
        raise UserError("the query names other graphs (FROM or SERVICE), which would be fetched from the network; "
                        "remove them")
    result = graph.query(prepared)
    if result.type == "ASK":
        return Answer(["answer"], iter([["yes" if result.askAnswer else "no"]]))
    if result.type != "SELECT":
        return Answer(["subject", "predicate", "object"], ([cell(term) for term in triple] for triple in result))
    names = sorted(map(str, result.vars or ()), key=lambda name: place(name, query))
    return Answer(names, ([cell(row.get(name)) for name in names] for row in result))


def place(name: str, query: str) -> int:
    """The first place of a variable in a query; rdflib returns those of SELECT * in no order."""
    found = re.search(rf"[?$]{re.escape(name)}(?!\w)", query)
    return found.start() if found else len(query)


def parts(node: Any) -> Iterator[str]:
    """The names of all operations in a query."""
    if isinstance(node, dict):
        yield str(getattr(node, "name", ""))
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple | set) else ()
    yield from itertools.chain.from_iterable(map(parts, inner))


def cell(term: Any) -> str:
    """A term as a reader sees it: the name of an entity, a relation or a type; the text of a literal; "" for none."""
    text = "" if term is None else str(term)
    space = next((space for space in NAMESPACES.values() if text.startswith(space)), None)
    return text if space is None else unquote(text.removeprefix(space))
