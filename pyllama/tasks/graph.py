"""Triples (head, relation, tail) as a file: .csv, .graphml, .ttl, or a drawing of them as .png."""
import csv
import importlib
import io
import math
from urllib.parse import quote

from pyllama.errors import UserError

SPACE = "http://example.org/"                               # RFC 2606 keeps it for those who have no name of their own


def writer(path):
    """triples -> the bytes of a file of this suffix.  Raises UserError if there is none, or its package is absent."""
    if path.suffix not in WRITERS:
        raise UserError(f"{path} is no {', '.join(WRITERS)}; give a name that ends in one of these")
    made, *packages = WRITERS[path.suffix]
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"a {path.suffix} file is made by {package}, which is not installed: "
                            f"pip install {package}") from None
    return made


def to_csv(triples) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("head", "relation", "tail"), *triples])
    return text.getvalue().encode()


def graph_of(triples):
    """A directed networkx graph, an edge with the attribute `relation` for each triple."""
    import networkx
    graph = networkx.MultiDiGraph()
    for head, relation, tail in triples:
        graph.add_edge(head, tail, relation=relation)
    return graph


def to_graphml(triples) -> bytes:
    import networkx
    return "\n".join(networkx.generate_graphml(graph_of(triples))).encode()


def to_turtle(triples) -> bytes:
    """What is marked is ent:NAME with its text as rdfs:label, a relation rel:NAME; a triple told twice is one."""
    import rdflib
    graph = rdflib.Graph()
    entities, relations = rdflib.Namespace(SPACE + "entity/"), rdflib.Namespace(SPACE + "relation/")
    graph.bind("ent", entities)
    graph.bind("rel", relations)
    for head, relation, tail in triples:
        graph.add((entities[quote(head, safe="")], relations[quote(relation, safe="")], entities[quote(tail, safe="")]))
        for name in (head, tail):
            graph.add((entities[quote(name, safe="")], rdflib.RDFS.label, rdflib.Literal(name)))
    return graph.serialize(format="turtle").encode()


def to_png(triples) -> bytes:
    data = io.BytesIO()
    drawn(triples).savefig(data, format="png", dpi=120, bbox_inches="tight")
    return data.getvalue()


def drawn(triples):
    """A figure of arrows from head to tail; not networkx's own, which takes pyplot and with it global state."""
    import networkx
    from matplotlib.figure import Figure
    graph = graph_of(triples)
    side = min(60, max(5, 1.6 * math.sqrt(len(graph))))     # inches: 60 keep the picture below 8,000 dots a side
    figure = Figure(figsize=(side, side))
    axes = figure.subplots()
    axes.set_axis_off()
    places = networkx.spring_layout(graph, k=2 / math.sqrt(max(1, len(graph))), seed=0)
    for head, tail, relation in graph.edges(data="relation"):
        a, b = places[head], places[tail]
        axes.annotate("", b, a, arrowprops={"arrowstyle": "->", "color": "C0", "shrinkA": 8, "shrinkB": 8})
        axes.text((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, relation, color="C0", fontsize=6, ha="center", parse_math=False)
    for name, place in places.items():
        axes.plot(place[0], place[1], "o", color="black", markersize=3)
        axes.text(place[0], place[1], name, fontsize=8, ha="center", va="bottom", parse_math=False)
    return figure


WRITERS = {".csv": (to_csv,), ".graphml": (to_graphml, "networkx"), ".ttl": (to_turtle, "rdflib"),
           ".png": (to_png, "networkx", "matplotlib")}
