"""Readers for the task relations: SemEval's files, and the multi-head format of CoNLL04 and others."""
import re
from collections import defaultdict
from itertools import combinations, pairwise
from typing import NamedTuple

from pyllama.tasks.rows import BadRow

MARKS = ("<e1>", "</e1>", "<e2>", "</e2>")
OTHER = "Other"
FORWARDS, BACKWARDS = "(e1,e2)", "(e2,e1)"
NONE = ("N", "")                                            # the names of no relation in multi-head files
MOST_ENTITIES = 200                                         # of a document: a sentence has fewer than 20


def semeval(path, text, wanted, spare):
    """Rows of SemEval's files: a line with a number and a sentence in quotes, a line with its relation, then a comment.

    Yields (place, fields or BadRow); see rows.Reader.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    lines = [(number, line) for number, line in lines if not line.startswith("Comment:")]
    is_relation = False                                     # of the sentence on the line before
    for (number, line), (_, next_line) in pairwise([*lines, (0, "")]):
        sentence = re.fullmatch(r'\d+\s+"(.*)"', line)
        if is_relation:
            is_relation = False
        elif sentence:
            is_relation = bool(next_line) and not re.match(r"\d+\s", next_line)
            cells = (sentence[1], next_line) if is_relation else (sentence[1],)
            yield f"{path} line {number}", dict(zip(wanted, cells, strict=False))
        else:
            yield f"{path} line {number}", BadRow('it is neither a number and a sentence in "quotes", nor the relation '
                                                  'below a sentence')


class Token(NamedTuple):
    """A line of a multi-head file."""
    line: int
    number: str
    word: str
    tag: str
    relations: list[tuple[str, str]]                        # (name, number of a token of the other entity)


class BadLine(BadRow):
    """The error in a line of a multi-head file."""
    def __init__(self, line, reason):
        super().__init__(reason)
        self.line = line


def multi_head(path, text, wanted, spare):
    """Rows of the multi-head format (Bekoulis et al., 2018).  Tabs separate number, word, tag, relations, and for each
    relation the number of a token of its other entity.  Here, Ann Smith lives in Maine:

        #doc 17
        0   In      O        ['N']         [0]
        1   Maine   B-Loc    ['N']         [1]              In <e1>Maine</e1> <e2>Ann Smith</e2>    Live_In(e2,e1)
        2   Ann     B-Peop   ['N']         [2]
        3   Smith   I-Peop   ['Live_In']   [1]

    Every pair of entities in a document gives a row for each relation between them, or one row with Other; e1 is the
    first in the text.  If the answer is optional (spare > 0), every pair gives one row, and the last two columns are
    not read.  A document with an invalid line gives no rows.
    """
    documents = [[]]
    for line, content in enumerate(text.split("\n"), 1):
        if content.startswith("#doc"):
            documents.append([])
        elif content.strip():
            documents[-1].append((line, content))
    for lines in documents:
        try:
            for line, *cells in pairs([read_token(number, content, spare) for number, content in lines]):
                yield f"{path} line {line}", dict(zip(wanted, cells, strict=True))
        except BadLine as error:
            yield f"{path} line {error.line}", error


def read_token(line, content, spare):
    """The Token of a line.  Raises BadLine."""
    cells = [cell.strip() for cell in re.split("\t+", content.strip())]
    if not (3 if spare else 5) <= len(cells) <= 5:
        raise BadLine(line, f"it has {len(cells)} columns instead of 5: number, word, tag, relations, heads")
    if not re.fullmatch("O|[BI]-.+", cells[2]):
        raise BadLine(line, f"the tag {cells[2]!r} is not O, B-NAME or I-NAME")
    names, heads = ([], []) if spare else map(items, cells[3:])
    if len(names) != len(heads):
        raise BadLine(line, f"it has {len(names)} relations, {cells[3]}, but {len(heads)} heads, {cells[4]}")
    relations = [(name, head) for name, head in zip(names, heads, strict=True) if name not in NONE]
    return Token(line, *cells[:3], relations)


def items(cell):
    """The items of a cell such as ['Live_In', 'Work_For']."""
    return [item.strip(" '\"") for item in cell.strip("[]").split(",")]


def pairs(tokens):
    """(line where the first one begins, marked text, relation) of every two entities.  Raises BadLine before the first.
    """
    spans, entity_of = entities(tokens)
    if len(spans) > MOST_ENTITIES:
        raise BadLine(tokens[0].line, f"its document has {len(spans):,} entities, and every two would be a row; begin "
                                      f"a document with a line #doc after at most {MOST_ENTITIES}")
    between = related(tokens, entity_of)
    for (a, first), (b, second) in combinations(enumerate(spans), 2):
        words = [token.word for token in tokens]
        for (begin, end), opening, closing in ((first, *MARKS[:2]), (second, *MARKS[2:])):
            words[begin] = opening + words[begin]
            words[end] += closing
        for relation in between.get((a, b), [OTHER]):
            yield tokens[first[0]].line, " ".join(words), relation


def entities(tokens):
    """([first, last] position of each run B-X I-X I-X, {a token's number: its entity or None}).  Raises BadLine."""
    spans, entity_of, tag_before = [], {}, "O"
    for position, token in enumerate(tokens):
        if token.number in entity_of:
            raise BadLine(token.line, f"there is a token {token.number} above it; begin each document with a line #doc")
        if token.tag[0] == "I" and token.tag[1:] == tag_before[1:]:
            spans[-1][1] = position
        elif token.tag != "O":
            spans.append([position, position])
        entity_of[token.number] = None if token.tag == "O" else len(spans) - 1
        tag_before = token.tag
    return spans, entity_of


def related(tokens, entity_of):
    """{(an entity, a later one): the names of their relations}.  Raises BadLine."""
    between = defaultdict(dict)                             # a dict is a set that keeps its order
    for token in tokens:
        for name, head in token.relations:
            a, b = entity_of[token.number], entity_of.get(head)
            if a is None or b is None:
                raise BadLine(token.line, f"{name} goes from token {token.number} to token {head}, but only tokens "
                                          f"tagged B- or I- have relations")
            if a == b:
                raise BadLine(token.line, f"{name} goes from an entity to itself, token {head}")
            between[min(a, b), max(a, b)][name + (FORWARDS if a < b else BACKWARDS)] = None
    return between
