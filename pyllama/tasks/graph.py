"""Triples (head, relation, tail) as a file: .csv, .jsonl, .graphml, .ttl, or a drawing as .png."""
import csv
import io
import json
import math
from collections import Counter
from typing import NamedTuple
from urllib.parse import quote

from pyllama.errors import UserError, counted, optional

MAX_DRAWN = 50                                              # triples in a drawing; more are unreadable
SPACE = "http://example.org/"                               # RFC 2606 reserves it for examples
NAMESPACES = {"ent": SPACE + "entity/", "rel": SPACE + "relation/", "type": SPACE + "type/"}


class Triple(NamedTuple):
    """A triple, and where it comes from.  Functions that take triples also take tuples of the first three."""
    head: str
    relation: str
    tail: str
    head_type: str = ""                                     # the label of the entity, such as PER; "": none
    tail_type: str = ""
    score: float | None = None                              # the probability of the relation
    document: str = ""                                      # its name
    sentence: str = ""


def writer(path):
    """A function of triples that returns (the bytes of the file, the number of triples in words).

    Raises UserError if the path's suffix is not in WRITERS, or the package that writes it is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(f"cannot write {path}; its name must end in {', '.join(WRITERS)}")
    write, *packages = WRITERS[suffix]
    for package in packages:
        optional(package, f"a {suffix} file")
    return lambda triples: (write(triples), shown(triples) if write is to_png else counted(len(triples), "triple"))


def to_csv(triples) -> bytes:
    """Lines head,relation,tail with a header, and further fields of Triple that any of them has."""
    of_all = [Triple(*triple) for triple in triples]
    used = [*Triple._fields[:3], *(name for name in Triple._fields[3:]
                                   if any(getattr(triple, name) not in ("", None) for triple in of_all))]
    text = io.StringIO()
    rows = ([getattr(triple, name) for name in used] for triple in of_all)
    csv.writer(text, lineterminator="\n").writerows([used, *rows])
    return text.getvalue().encode()


def to_json_lines(triples) -> bytes:
    """A JSON object for each triple, with the fields of Triple that it has."""
    objects = ({name: value for name, value in Triple(*triple)._asdict().items() if value not in ("", None)}
               for triple in triples)
    return "".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in objects).encode()


def graph_of(triples):
    """A directed networkx graph, an edge with the attribute `relation` for each triple; a node may have a `type`."""
    import networkx
    graph = networkx.MultiDiGraph()
    for head, relation, tail, *_ in triples:
        graph.add_edge(head, tail, relation=relation)
    for name, kind in types(triples):
        graph.nodes[name].setdefault("type", kind)
    return graph


def types(triples) -> list[tuple[str, str]]:
    """(entity, its type) without repeats, the most frequent type of an entity first."""
    of_all = [Triple(*triple) for triple in triples]
    counts = Counter(pair for triple in of_all for pair in ((triple.head, triple.head_type),
                                                            (triple.tail, triple.tail_type)) if pair[1])
    return [pair for pair, _ in counts.most_common()]


def to_graphml(triples) -> bytes:
    """GraphML of graph_of()."""
    import networkx
    return "\n".join(networkx.generate_graphml(graph_of(triples))).encode()


def to_turtle(triples) -> bytes:
    """Entities are ent:NAME with their text as rdfs:label, relations rel:NAME, types type:NAME; duplicate triples are
    merged."""
    import rdflib
    graph = rdflib.Graph()
    entities, relations, kinds = map(rdflib.Namespace, NAMESPACES.values())
    for prefix, space in NAMESPACES.items():
        graph.bind(prefix, space)
    for head, relation, tail, *_ in triples:
        graph.add((entities[quote(head, safe="")], relations[quote(relation, safe="")], entities[quote(tail, safe="")]))
        for name in (head, tail):
            graph.add((entities[quote(name, safe="")], rdflib.RDFS.label, rdflib.Literal(name)))
    for name, kind in types(triples):
        graph.add((entities[quote(name, safe="")], rdflib.RDF.type, kinds[quote(kind, safe="")]))
    return graph.serialize(format="turtle").encode()


def to_png(triples) -> bytes:
    """The drawing of drawn() at 120 dots per inch."""
    data = io.BytesIO()
    drawn(triples).savefig(data, format="png", dpi=120, bbox_inches="tight")
    return data.getvalue()


def shown(triples) -> str:
    """The number of triples in a drawing, and of how many."""
    number = len({triple[:3] for triple in triples})
    total = counted(number, "triple")
    return total if number <= MAX_DRAWN else f"the {MAX_DRAWN} most frequent of {total}"


def drawn(triples):
    """A figure with an arrow from head to tail for each of the most frequent triples; in a tie, of the first ones.

    It does not use networkx's drawing, which needs pyplot and its global state.
    """
    from matplotlib.figure import Figure
    frequent = Counter(triple[:3] for triple in triples).most_common(MAX_DRAWN)
    graph = graph_of([triple for triple, _ in frequent])
    points, width, height = laid_out(graph)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), title=shown(triples))
    axes.set_axis_off()
    labels = {}
    for head, tail, relation in graph.edges(data="relation"):
        labels.setdefault((head, tail), []).append(relation)
    for (head, tail), relations in labels.items():
        (x, y), (u, v) = points[head], points[tail]
        axes.annotate("", (u, v), (x, y), arrowprops={"arrowstyle": "->", "color": "C0", "shrinkA": 8, "shrinkB": 8})
        axes.text((x + u) / 2, (y + v) / 2, ", ".join(relations), color="C0", fontsize=6, ha="center",
                  va="top" if head == tail else "center", parse_math=False,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    for name, (x, y) in points.items():
        axes.plot(x, y, "o", color="black", markersize=3)
        axes.text(x, y, name, fontsize=8, ha="center", va="bottom", parse_math=False)
    return figure


def laid_out(graph):
    """({name: (x, y)}, width, height) in inches: the connected components, each laid out by itself, in rows."""
    import networkx
    boxes = []                                              # (height, width, {name: (x, y) in the box})
    for part in networkx.weakly_connected_components(graph):
        edges = networkx.Graph((head, tail) for head, tail in graph.edges() if head in part)    # in the triples' order
        reach = min(8, max(networkx.diameter(edges), len(edges) / 8))   # to the outermost: a name is about an inch wide
        spots = networkx.kamada_kawai_layout(edges, scale=reach)
        left, low = (min(spot[axis] for spot in spots.values()) for axis in (0, 1))
        right, top = (max(spot[axis] for spot in spots.values()) for axis in (0, 1))
        inside = {name: (right - x + 0.8, y - low + 0.4) for name, (x, y) in spots.items()}
        boxes.append((top - low + 0.6, right - left + 1.6, inside))
    boxes.sort(key=lambda box: -round(box[0], 1))           # the boxes of a row have similar heights
    area = sum(height * width for height, width, _ in boxes)
    row_width = max([math.sqrt(1.3 * area), *(width for _, width, _ in boxes), 4])
    points, x, y, row_height = {}, 0.0, 0.0, 0.0
    for height, width, inside in boxes:
        if x + width > row_width:
            x, y, row_height = 0.0, y + row_height, 0.0
        points |= {name: (x + u, y + v) for name, (u, v) in inside.items()}
        x, row_height = x + width, max(row_height, height)
    return points, row_width, max(1.0, y + row_height)


WRITERS = {".csv": (to_csv,), ".jsonl": (to_json_lines,), ".graphml": (to_graphml, "networkx"),
           ".ttl": (to_turtle, "rdflib"), ".png": (to_png, "networkx", "matplotlib")}
