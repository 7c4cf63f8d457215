"""Rows of the task relations from files of its own: SemEval's, and those in the multi-head form, such as CoNLL04's."""
import re
from collections import defaultdict
from itertools import combinations, pairwise
from typing import NamedTuple

from pyllama.tasks.rows import BadRow

MARKS = ("<e1>", "</e1>", "<e2>", "</e2>")
OTHER = "Other"
FORWARDS, BACKWARDS = "(e1,e2)", "(e2,e1)"
NONE = ("N", "")                                            # what multi-head files call no relation


def semeval(path, text, wanted, spare):
    """Rows of the original files: a number and a sentence in quotes, below it its relation, then a comment."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    lines = [(number, line) for number, line in lines if not line.startswith("Comment:")]
    taken = False                                           # is the line the relation of the one before?
    for (number, line), (_, below) in pairwise([*lines, (0, "")]):
        sentence = re.fullmatch(r'\d+\s+"(.*)"', line)
        if taken:
            taken = False
        elif sentence:
            taken = bool(below) and not re.match(r"\d+\s", below)
            told = (sentence[1], below) if taken else (sentence[1],)
            yield f"{path} line {number}", dict(zip(wanted, told, strict=False))
        else:
            yield f"{path} line {number}", BadRow('it is neither a number and a sentence in "quotes", nor the relation '
                                                  'below one')


class Token(NamedTuple):
    """A line of a multi-head file."""
    line: int
    number: str
    word: str
    tag: str
    relations: list[tuple[str, str]]                        # name, and the number of a token of what it goes to


class BadLine(BadRow):
    """What is wrong with a line of a multi-head file."""
    def __init__(self, line, reason):
        super().__init__(reason)
        self.line = line


def multi_head(path, text, wanted, spare):
    """Rows of the multi-head form (Bekoulis et al., 2018).  Tabs stand between number, word, tag, relations, and for
    each of these the number of a token of the thing that it goes to, here from Ann Smith to Maine:

        #doc 17
        0   In      O        ['N']         [0]
        1   Maine   B-Loc    ['N']         [1]              In <e1>Maine</e1> <e2>Ann Smith</e2>    Live_In(e2,e1)
        2   Ann     B-Peop   ['N']         [2]
        3   Smith   I-Peop   ['Live_In']   [1]

    Every two things of a document make a row for each relation between them, the first in the text as e1; where there
    is none, one row, Other.  If the answers are spare, every two things make one row, and the last two columns are not
    read.  A document with a bad line makes no row.
    """
    documents = [[]]
    for line, content in enumerate(text.split("\n"), 1):
        if content.startswith("#doc"):
            documents.append([])
        elif content.strip():
            documents[-1].append((line, content))
    for lines in documents:
        try:
            for line, *told in pairs([token(*one, spare) for one in lines]):
                yield f"{path} line {line}", dict(zip(wanted, told, strict=True))
        except BadLine as error:
            yield f"{path} line {error.line}", error


def token(line, content, spare):
    cells = [cell.strip() for cell in re.split("\t+", content.strip())]
    if not (3 if spare else 5) <= len(cells) <= 5:
        raise BadLine(line, f"it has {len(cells)} columns instead of 5: number, word, tag, relations, heads")
    if not re.fullmatch("O|[BI]-.+", cells[2]):
        raise BadLine(line, f"the tag {cells[2]!r} is neither O nor B- or I- and a name")
    names, heads = ([], []) if spare else ([one.strip(" '\"") for one in cell.strip("[]").split(",")]
                                           for cell in cells[3:])
    if len(names) != len(heads):
        raise BadLine(line, f"it has {len(names)} relations, {cells[3]}, but {len(heads)} heads, {cells[4]}")
    return Token(line, *cells[:3], [pair for pair in zip(names, heads, strict=True) if pair[0] not in NONE])


def pairs(tokens):
    """(line where the first begins, text, relation) of every two things; BadLine before the first of them, if at all.
    """
    found, of = things(tokens)
    between = related(tokens, of)
    for (a, first), (b, second) in combinations(enumerate(found), 2):
        words = [one.word for one in tokens]
        for (begin, end), opening, closing in ((first, *MARKS[:2]), (second, *MARKS[2:])):
            words[begin] = opening + words[begin]
            words[end] += closing
        for relation in between.get((a, b), [OTHER]):
            yield tokens[first[0]].line, " ".join(words), relation


def things(tokens):
    """(first and last place of each run of B-X I-X I-X, {token's number: its run or None})"""
    found, of, before = [], {}, "O"
    for place, one in enumerate(tokens):
        if one.number in of:
            raise BadLine(one.line, f"there is a token {one.number} above it; begin each document with a line #doc")
        if one.tag[0] == "I" and one.tag[1:] == before[1:]:
            found[-1][1] = place
        elif one.tag != "O":
            found.append([place, place])
        of[one.number] = None if one.tag == "O" else len(found) - 1
        before = one.tag
    return found, of


def related(tokens, of):
    """{(a thing, a later one): their relations}"""
    between = defaultdict(dict)                             # a dict is a set that keeps its order
    for one in tokens:
        for name, head in one.relations:
            a, b = of[one.number], of.get(head)
            if a is None or b is None:
                raise BadLine(one.line, f"{name} goes from token {one.number} to token {head}; only what is tagged B- "
                                        f"or I- has relations")
            if a == b:
                raise BadLine(one.line, f"{name} goes from a thing to itself, token {head}")
            between[min(a, b), max(a, b)][name + (FORWARDS if a < b else BACKWARDS)] = None
    return between
