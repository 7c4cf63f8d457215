"""Words and their tags, from columns (CoNLL), lists of words, or spans of characters.

    scheme      a span of one word, one of three words, and two spans of one label side by side
    BIO         B-X     B-X I-X I-X     B-X B-X         also called IOB2; rows have this one, whatever their file has
    IOB1        I-X     I-X I-X I-X     I-X B-X         CoNLL-2003
    BIOES       S-X     B-X I-X E-X     S-X S-X         with L for E and U for S, it is called BILOU

A row is {"text": ..., "words": [[first, past], ...], "tags": [...]}: the characters and the tag of each word.
"""
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise

from pyllama.errors import UserError, counted
from pyllama.tasks.columns import found
from pyllama.tasks.row_files import BadRow, NotObject, Reader, json_array, json_lines
from pyllama.tasks.rows import text_of
from pyllama.text.scripts import runs

FIELDS = ("text", "tags")
OUTSIDE = "O"
SPAN_TAG = re.compile("O|[BIESLU]-.+", re.DOTALL)
BILOU = {"L": "E", "U": "S"}                                # other letters of BIOES
WORDS = ("tokens", "words")                                 # fields with a list of words, in public data sets
TAGS = ("tags", "ner_tags", "pos_tags", "labels", "ner", "upos", "pos")     # with a tag for each word
SPANS = ("entities", "spans", "ents", "label", "labels")    # with spans of characters
STARTS, ENDS = ("start", "start_offset"), ("end", "end_offset")     # of a span that is an object
LABELS = ("label", "entity_group", "type", "labels")
CONLL_U = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
WORD_NAMES = ("word", "words", "token", "tokens", "form")    # of the first column, in a line above the words
MULTI_HEAD = ("number", "form", "tag", "relations", "heads")    # see relation_files.multi_head


class Tagged(dict):
    """The fields of a row as they are in its file, the row that they mean, and this row under the names asked for."""
    def __init__(self, given, row):
        super().__init__(given)
        self.row, self.asked = row, {}


class BadTag(BadRow):
    """The error in the tag of a word, by its number from 0."""
    def __init__(self, number, reason):
        super().__init__(reason)
        self.number = number


# Schemes

def split_tag(tag: str) -> tuple[str, str]:
    """(B, I, E, S or O; the label) of a tag."""
    letter, _, label = tag.partition("-")
    return BILOU.get(letter, letter), label


def are_spans(sequences: Iterable[Sequence[str]]) -> bool:
    """Do these tags mark spans?  If not, they are names of their words, such as parts of speech."""
    counts = Counter(tag for tags in sequences for tag in tags)
    marking = sum(count for tag, count in counts.items() if SPAN_TAG.fullmatch(tag))
    return OUTSIDE in counts or 2 * marking > counts.total()


def scheme_of(sequences: Sequence[Sequence[str]]) -> str:
    """The scheme of a file's tags: BIOES if one of its letters occurs; else by the tags at which most spans begin."""
    if any(tag[:2] in ("E-", "S-", "L-", "U-") for tags in sequences for tag in tags):
        return "BIOES"
    begins = Counter(letter for tags in sequences for (_, before), (letter, label) in
                     pairwise(map(split_tag, [OUTSIDE, *tags])) if letter != OUTSIDE and before != label)
    return "IOB1" if begins["I"] > begins["B"] else "BIO"


def to_bio(tags: Sequence[str], scheme: str) -> list[str]:
    """The tags in the scheme BIO.  Raises BadTag for the first that breaks the rules of its scheme."""
    result = []
    for number, tag in enumerate(tags):
        if not SPAN_TAG.fullmatch(tag):
            raise BadTag(number, f"the tag {tag!r} is not O, B-NAME or I-NAME")
        (before, label_before), (letter, label) = split_tag(tags[number - 1] if number else OUTSIDE), split_tag(tag)
        after, label_after = split_tag(tags[number + 1] if number + 1 < len(tags) else OUTSIDE)
        continues = before in ("B", "I") and label_before == label
        if broken := broken_rule(scheme, letter, before in ("B", "I", "E", "S") and label_before == label, continues,
                                 after in ("I", "E") and label_after == label):
            raise BadTag(number, f"the tag {tag!r} after {tags[number - 1] if number else 'the beginning'!r} breaks a "
                                 f"rule of the scheme {scheme}, which this file has: {broken}")
        inside = continues and letter in ("I", "E")
        result.append(tag if letter == OUTSIDE else f"{'I' if inside else 'B'}-{label}")
    return result


def broken_rule(scheme: str, letter: str, beside: bool, continues: bool, continued: bool) -> str:
    """The rule that a tag breaks, or "".

    beside      the word before belongs to a span with this label
    continues   and that span may go on
    continued   the next word may continue a span with this label
    """
    if scheme == "IOB1":
        return "B- stands only beside a span of the same label" if letter == "B" and not beside else ""
    if letter in ("I", "E") and not continues:
        return f"{letter}- continues a span of the same label"
    if scheme == "BIOES" and letter in ("B", "I") and not continued:
        return "a span ends with E-"
    return ""


# Rows

def words_of(text: str, boundaries: Iterable[int] = ()) -> list[list[int]]:
    """The characters [first, past] of each word and each other character of a text, but white space.

    A word also ends at each of the boundaries.
    """
    cuts = sorted({*boundaries})
    words: list[list[int]] = []
    for run in runs(text):
        if not run.text.isspace():
            words += map(list, pairwise([run.first, *(cut for cut in cuts if run.first < cut < run.past), run.past]))
    return words


def from_words(words, tags=None) -> dict:
    """The row of a list of words and of their tags, the words joined by spaces.  Raises BadRow."""
    if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
        raise BadRow(f"{str(words)[:60]!r} is not a list of words")
    spans, position = [], 0
    for word in words:
        lead = len(word) - len(word.lstrip())
        spans.append([position + lead, position + lead + len(word.strip())])
        position += len(word) + 1
    row = {"text": text_of({"tokens": " ".join(words)}, "tokens"), "words": spans}
    if tags is None:
        return row
    if isinstance(tags, list) and any(isinstance(tag, int) for tag in tags):
        raise BadRow(f"the tags {str(tags)[:60]} are numbers; write the name of each, such as B-PER")
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise BadRow(f"the tags {str(tags)[:60]!r} are not a list of names")
    if len(tags) != len(words):
        raise BadRow(f"it has {len(words)} words but {len(tags)} tags")
    return {**row, "tags": [tag.strip() for tag in tags]}


def from_spans(text: str, entities) -> dict:
    """The row of a text and of the spans in it, {"start", "end", "label"} or [start, end, label].  Raises BadRow.

    It also has "of_spans", because its tags are BIO, whatever other rows of the file have.
    """
    if not isinstance(entities, list):
        raise BadRow(f"the entities {str(entities)[:60]!r} are not a list")
    spans = sorted(span_in(text, entity) for entity in entities)
    for (_, past, a), (first, _, b) in pairwise(spans):
        if first < past:
            raise BadRow(f"the entities {a} and {b} overlap at character {first}; a word has one tag")
    words = words_of(text, [place for first, past, _ in spans for place in (first, past)])
    tags = [OUTSIDE] * len(words)
    for first, past, label in spans:
        inside = [i for i, (a, b) in enumerate(words) if first <= a and b <= past]
        for i in inside:
            tags[i] = f"{'B' if i == inside[0] else 'I'}-{label}"
    return {"text": text, "words": words, "tags": tags, "of_spans": True}


def span_in(text: str, entity) -> tuple[int, int, str]:
    """(first, past, label) of an entity, without white space around it.  Raises BadRow."""
    if isinstance(entity, dict):
        first, past, label = (next((entity[name] for name in names if name in entity), None)
                              for names in (STARTS, ENDS, LABELS))
        label = label[0] if isinstance(label, list) and len(label) == 1 else label
    else:
        first, past, label = entity if isinstance(entity, list) and len(entity) == 3 else (None, None, None)
    if not (isinstance(first, int) and isinstance(past, int) and isinstance(label, str) and label.strip()):
        raise BadRow(f"the entity {str(entity)[:60]} has no start, end and label; write {{\"start\": 0, \"end\": 3, "
                     f"\"label\": \"PER\"}} or [0, 3, \"PER\"]")
    covered = text[first:past] if 0 <= first < past <= len(text) else ""
    if not covered.strip():
        raise BadRow(f"the entity {label} from {first} to {past} covers nothing of a text of {len(text)} characters")
    written = entity.get("text", covered) if isinstance(entity, dict) else covered
    if written != covered:
        raise BadRow(f"the entity {written!r} does not stand at {first} to {past} of its text, which has {covered!r} "
                     f"there")
    return first + len(covered) - len(covered.lstrip()), past - len(covered) + len(covered.rstrip()), label.strip()


def from_object(values: dict, wanted: Sequence[str] = FIELDS, spare: int = 0) -> dict:
    """The row of an object: words and tags, or a text and its spans.  spare: the answer may be absent.

    wanted: the names of the two fields, if they are not FIELDS.  Raises BadRow.
    """
    asked, answer_name = (name if name != usual else None for name, usual in zip(wanted, FIELDS, strict=True))
    name = asked or next((name for name in WORDS if isinstance(values.get(name), list)
                          and not any(isinstance(word, dict) for word in values[name])), None)
    question = values.get(name or "text", values.get(found(("text",), values).get("text", "text")))
    if not isinstance(question, list):
        question = text_of({name or "text": question} if question is not None else {}, name or "text")
    if spare:
        return from_words(question) if isinstance(question, list) else {"text": question, "words": words_of(question)}
    names = [answer_name] if answer_name else TAGS if isinstance(question, list) else (*SPANS, *TAGS)
    answer = next((values[name] for name in names if values.get(name) is not None), None)
    if answer is None:
        raise BadRow(f"it has no field {names[0]!r}, only {', '.join(map(str, values)) or 'none'}; choose others with "
                     f"fields")
    if isinstance(question, list):
        return from_words(question, answer)
    if isinstance(answer, list) and answer and all(isinstance(tag, str) for tag in answer):
        return from_words(question.split(), answer)
    return from_spans(question, answer)


# Files

def column_rows(path, text, wanted, spare):
    """(place of the row, places of its tags, Tagged or BadRow) of each sentence of a file of columns.

    A line has a word, perhaps other columns, and its tag, separated by tabs or spaces; an empty line ends a sentence.
    wanted: the numbers of the two columns from 1, or their names in CoNLL-U or in the first line.  Where the tags may
    be absent, a .txt without them has a text a line.
    """
    lines = [(number, line.strip("\r\n ")) for number, line in enumerate(text.split("\n"), 1)]
    separator = "\t" if any("\t" in line for _, line in lines) else None
    if spare and path.suffix.lower() == ".txt" and not separator and not are_columns(line.split() for _, line in lines):
        yield from ((f"{path} line {number}", None, Tagged({"text": line}, {"text": line, "words": words_of(line)}))
                    for number, line in lines if line)
        return
    names, lines = named_columns(path, lines, separator)
    first, last = columns_of(path, wanted, names, spare)
    sentence, width = [], None
    for number, line in [*lines, (0, "")]:
        cells = [cell.strip() for cell in line.split(separator)] if line else []
        if cells and cells[0] != "-DOCSTART-":
            sentence.append((number, cells))
        elif sentence:
            width = width or len(sentence[0][1])
            yield sentence_row(path, sentence, width, first, last, spare)
            sentence = []


def are_columns(lines: Iterable[list[str]]) -> bool:
    """Do lines of cells have a tag in their last column?"""
    filled = [cells for cells in lines if cells]
    return len({*map(len, filled)}) == 1 and len(filled[0]) > 1 and are_spans([[cells[-1] for cells in filled]])


def named_columns(path, lines, separator):
    """(names of the columns, lines without comments): the names of CoNLL-U, of the multi-head form, or of the first
    line; () if there are none."""
    first = next((line for _, line in lines if line and not line.startswith("#")), "").split(separator)
    if separator and any(line.startswith("#doc") for _, line in lines):
        return MULTI_HEAD, [(number, "" if line.startswith("#doc") else line) for number, line in lines]
    if separator and (path.suffix.lower() == ".conllu" or len(first) == len(CONLL_U)):
        single = re.compile(r"\d+\t|$")                     # not words that are written as one, or left out
        return CONLL_U, [(number, line) for number, line in lines if single.match(line)]
    if first and first[0].lower() in WORD_NAMES:
        return tuple(first), [(number, line) for number, line in lines if line.split(separator) != first]
    comment = "# " if separator else "\n"                   # without tabs, "# O" may be a word
    return (), [(number, line) for number, line in lines if "\t" in line or not line.startswith(comment)]


def columns_of(path, wanted: Sequence[str], names: Sequence[str], spare: int) -> tuple[int, int]:
    """The indices of the columns of the words and of the tags.  Raises UserError if wanted names none."""
    if tuple(wanted) == FIELDS:
        return {MULTI_HEAD: (1, 2), CONLL_U: (1, 3)}.get(tuple(names), (0, -1))
    indices = [int(name) - 1 if name.isdigit() else names.index(name) if name in names else -1 for name in wanted]
    if min(indices[:2 - spare]) < 0:
        raise UserError(f"fields names {' and '.join(wanted)}, which are not columns of {path}; give the numbers of "
                        f"the columns of words and tags, such as 1 and 4")
    return indices[0], indices[1]


def sentence_row(path, sentence, width, first, last, spare):
    """(place of the row, places of its tags, Tagged or BadRow) of the lines of a sentence."""
    places = [f"{path} line {number}" for number, _ in sentence]
    words, tags = [], []
    for place, (_, cells) in zip(places, sentence, strict=True):
        least = first + 1 if spare else max(first, last, 1) + 1
        if len(cells) < least or (len(cells) != width and not spare):
            return place, None, BadRow(f"it has {counted(len(cells), 'column')} instead of {max(width, 2)}")
        if not cells[first] or not (spare or cells[last]):
            return place, None, BadRow("it has no word or no tag")
        words.append(cells[first])
        tags.append("" if spare else cells[last])
    try:
        given = {"tokens": words} if spare else {"tokens": words, "tags": tags}
        return places[0], places, Tagged(given, from_words(words, None if spare else tags))
    except BadRow as error:
        return places[0], None, error


def object_rows(reader, path, text, wanted, spare):
    """(place of the row, places of its tags, Tagged or BadRow) of each object that another Reader finds.

    spaCy writes [text, object], with the entities in the object.
    """
    for place, values in reader(path, text, wanted, spare):
        try:
            if isinstance(values, NotObject) and [*map(type, ensured_list(values.value))] == [str, dict]:
                values = {"text": values.value[0], **values.value[1]}
            if isinstance(values, BadRow):
                raise values
            row = from_object(values, wanted, spare)
            yield place, None if row.pop("of_spans", False) else [place] * len(row["words"]), Tagged(values, row)
        except BadRow as error:
            yield place, None, error


def ensured_list(value):
    """The value if it is a list, else []."""
    return value if isinstance(value, list) else []


def checked(rows_of: Callable, path, text, wanted, spare):
    """A Reader of (place, Tagged or BadRow): the tags in the scheme BIO, by the scheme that the whole file has.

    rows_of yields (place of the row, places of its tags, Tagged or BadRow).  Without places, the row's tags are BIO,
    made from spans.
    """
    rows = [*rows_of(path, text, wanted, spare)]
    sequences = [row.row["tags"] for _, places, row in rows if places and "tags" in row.row]
    scheme = scheme_of(sequences) if are_spans(sequences) else None
    for place, places, row in rows:
        if isinstance(row, Tagged):
            try:
                if not spare:
                    row.row["tags"] = to_bio(row.row["tags"], scheme) if places and scheme else row.row["tags"]
                row.asked = {wanted[0]: row.row["text"], wanted[1]: row.row.get("tags")}
            except BadTag as error:
                place, row = places[error.number], error
        yield place, row


def unpacked(values: dict) -> dict:
    """The fields of a row, and "row", what they mean.  Raises BadRow."""
    if isinstance(values, Tagged):
        return {**values, **values.asked, "row": values.row}
    row = from_object(values, spare=1)
    return {**values, "text": row["text"], "row": row}


def refused(path, text, wanted, spare):
    """A Reader that refuses: a .csv has a row in each line, but a sentence has many words."""
    raise UserError(f"{path} is a .csv, which has no form for tagged words; save a word and its tag a line as .conll, "
                    f"or objects as .jsonl")
    yield


COLUMNS = partial(checked, column_rows)
READERS: dict[str, Reader] = {**dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".iob2", ".txt", ".tsv"), COLUMNS),
                              ".csv": refused,
           **dict.fromkeys((".jsonl", ".ndjson"), partial(checked, partial(object_rows, json_lines))),
           ".json": partial(checked, partial(object_rows, json_array))}
