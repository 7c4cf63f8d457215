"""Words of any script: runs of characters of Unicode's categories L (letters), M (marks) and N (numbers).

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces between words.  There, each letter with its marks counts
as a word.
"""
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

ZERO_WIDTH_SPACE = "\u200b"                                 # it separates words, unlike other invisible characters
BLOCKS = {
    "Han": "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
           "\U00020000-\U0003ffff",
    "Bopomofo": "\u3100-\u312f\u31a0-\u31bf",
    "kana": "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f",
    "Thai": "\u0e00-\u0e7f",
    "Lao": "\u0e80-\u0eff",
    "Burmese": "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",
    "Khmer": "\u1780-\u17ff",
    "Tai": "\u1950-\u19df\u1a20-\u1aaf",
    "Javanese": "\u1b00-\u1b7f\ua980-\ua9df",
}
UNSPACED = re.compile(f"[{''.join(BLOCKS.values())}]")
SCRIPTS = {name: re.compile(f"[{block}]") for name, block in BLOCKS.items()}


class Run(NamedTuple):
    """A part text[first:past] of a text: a word, a letter of a script without spaces, or another character."""
    text: str                                               # without invisible characters
    first: int
    past: int
    is_word: bool = False
    is_unspaced: bool = False                               # is_word is True too


def runs(text: str) -> Iterator[Run]:
    """The runs of a text.  White space is another character; invisible characters are left out."""
    run = Run("", 0, 0)
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        if category == "Cf" and character != ZERO_WIDTH_SPACE:
            continue
        unspaced = category[0] == "L" and bool(UNSPACED.match(character))
        marks_run = category[0] == "M" and run.is_word
        extends_run = category[0] in "LMN" and run.is_word and not (unspaced or run.is_unspaced)
        if marks_run or extends_run:
            run = run._replace(text=run.text + character, past=place + 1)
            continue
        if run.text:
            yield run
        run = Run(character, place, place + 1, category[0] in "LN", unspaced)
    if run.text:
        yield run


def words(text: str) -> list[str]:
    """The words in lower case: runs of letters, marks and numbers; each letter of a script without spaces.

    Of ASCII text, these are the words of rouge-score: Lin's ROUGE (2004) splits at all but letters and digits.

    >>> from pyllama.text.scripts import words
    >>> words("Don't stop: 我爱 C3PO")
    ['don', 't', 'stop', '我', '爱', 'c3po']
    """
    return [run.text for run in runs(unicodedata.normalize("NFC", text.lower())) if run.is_word]


def tokens(text: str) -> list[str]:
    """What white space separates, with its case; punctuation and symbols around it are tokens of their own.

    A mark inside a word, such as in "Don't" or "3.5", belongs to it.  What has a letter of a script without spaces is
    cut into its runs.

    >>> from pyllama.text.scripts import tokens
    >>> tokens('Say: "It is 3.5 m!" 我爱C3PO。')
    ['Say', ':', '"', 'It', 'is', '3.5', 'm', '!', '"', '我', '爱', 'C3PO', '。']
    """
    parts: list[str] = []
    for word in text.split():
        inside = [i for i, character in enumerate(word) if unicodedata.category(character)[0] not in "PS"]
        first, past = (inside[0], inside[-1] + 1) if inside else (len(word), len(word))
        if UNSPACED.search(word):
            parts += [run.text for run in runs(word)]
        else:
            parts += filter(None, [*word[:first], word[first:past], *word[past:]])
    return parts


def letters(texts: Iterable[str]) -> Counter:
    """The number of letters in texts by script: the names of SCRIPTS, and "" for all scripts with spaces."""
    counts: Counter = Counter()
    for character, count in Counter(character for text in texts for character in text).items():
        if unicodedata.category(character)[0] == "L":
            counts[next((name for name, script in SCRIPTS.items() if script.match(character)), "")] += count
    return counts


def mostly_unspaced(texts: Iterable[str]) -> bool:
    """Do more than half of the letters in texts belong to scripts without spaces?"""
    counts = letters(texts)
    return 2 * counts[""] < counts.total()
