"""Find a task's fields among the names that a file gives its columns: Text, sentence or review for text."""
from collections import Counter
from collections.abc import Iterable, Sequence

# Other names of a field in public data sets, as plain() writes them; one is read if the file has no second of them
SYNONYMS: dict[str, tuple[str, ...]] = {
    "text": ("sentence", "review", "content", "tweet", "comment", "commenttext", "utterance", "document", "body",
             "message", "phrase", "reviewtext", "reviewbody", "texts"),
    "label": ("labels", "class", "category", "sentiment", "target", "polarity", "rating", "stars", "intent", "topic",
              "emotion", "score"),
    "source": ("src", "input", "word", "grapheme", "graphemes", "original"),
    "target": ("tgt", "output", "phoneme", "phonemes", "pronunciation", "reference"),
    "corrected": ("correction", "correct", "target", "output"),
    "document": ("article", "dialogue", "text"),
    "summary": ("highlights", "abstract", "headline"),
    "context": ("passage", "paragraph"),
    "question": ("query",),
    "relation": ("label", "class"),
    "instruction": ("prompt", "question", "query"),
    "output": ("response", "completion", "answer"),
    "input": ("context",),
}
# The two texts of a pair, under other names than text and text_pair
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question", "sentence"), ("question1", "question2"),
         ("text1", "text2"), ("texta", "textb"), ("sentencea", "sentenceb"), ("query", "passage"))
MOST, LONGEST = 12, 40                                      # names in a message, and characters of a name
INDEX = ("id", "idx", "index", "guid", "rowid", "unnamed:0")    # of columns that number the rows


def plain(name: object) -> str:
    """A name in lower case, without spaces, hyphens and underscores."""
    return "".join(character for character in str(name).casefold() if not (character.isspace() or character in "-_"))


def found(wanted: Sequence[str], available: Iterable[str]) -> dict[str, str]:
    """{wanted name: the available name that stands for it}, without those that have none, or several.

    An exact name comes before one in another spelling, and that before a synonym.

    >>> from pyllama.tasks.columns import found
    >>> found(("text", "label"), ("id", "Sentence", "Label"))
    {'text': 'Sentence', 'label': 'Label'}
    """
    available = [name for name in available if isinstance(name, str)]
    names = {name: name for name in wanted if name in available}
    spellings = by_spelling(name for name in available if name not in names)
    for name in wanted:
        if name not in names and plain(name) in spellings:
            names[name] = spellings[plain(name)]
    free = by_spelling(name for name in available if name not in names.values())
    if "text" in wanted and "text" not in names:
        both = [pair for pair in PAIRS if free.keys() >= {*pair}]
        if len(both) == 1:
            names |= {"text": free[both[0][0]], "text_pair": free[both[0][1]]}
    for name in wanted:
        others = [free[other] for other in SYNONYMS.get(name, ()) if other in free]
        if name not in names and len(others) == 1:
            names[name] = others[0]
    return {name: names[name] for name in wanted if name in names}


def by_spelling(names: Iterable[str]) -> dict[str, str]:
    """{a name as plain() writes it: the name}, without spellings that several names share."""
    names = list(names)
    counts = Counter(map(plain, names))
    return {plain(name): name for name in names if counts[plain(name)] == 1}


def is_a_name(cell: str, wanted: Sequence[str]) -> bool:
    """May the cell be the name of a column: of a wanted one, or of an index?"""
    known = {*INDEX, *map(plain, wanted), *(other for name in wanted for other in SYNONYMS.get(name, ())),
             *(name for pair in PAIRS for name in pair if "text" in wanted)}
    return plain(cell) in known


def listed(names: Iterable[object]) -> str:
    """The first names for a message, each on one line and not too long."""
    short = [" ".join(str(name).split())[:LONGEST] for name in names]
    return ", ".join([*short[:MOST], *(["..."] if len(short) > MOST else [])]) or "none"


def is_number(cell: str) -> bool:
    """Is the cell a number?"""
    try:
        float(cell)
    except ValueError:
        return False
    return True
