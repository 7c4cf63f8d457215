"""How a text reads and how much it repeats itself, measured without a model.

    word                a run of letters and digits, joined by hyphens and apostrophes; a Chinese character is one too
    sentence            ends at . ! ? … before white space, at 。！？ anywhere, and at an empty line, if there is a word
                        in it; so "Mr. Smith" makes two.  It is Chinese if it has a Chinese character, English if not
    syllables           the groups of the vowels a e i o u y, but for a final e after a consonant ("make", not "table"
                        or "me"); at least one
    reading ease        206.835 - 84.6 syllables/words - 1.015 words/sentences, of the English sentences (Flesch, 1948);
                        100 very easy, 0 very hard
    distinct-n          different n-grams / n-grams; what is left of 1 has occurred before.  (Li et al., 2016, divide by
                        the words instead: n - 1 a document more.)

Case does not matter.  Nothing is counted across the end of a document.
"""
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

HAN = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
LETTERS = rf"(?:(?!{HAN})\w)+"
WORD = re.compile(rf"{HAN}|{LETTERS}(?:['’-]{LETTERS})*")
CHINESE = re.compile(HAN)
END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|\Z)|[。！？]+|\n\s*\n")
VOWELS = re.compile("[aeiouy]+")
SILENT = re.compile("(?:[^aeiouyl]|[aeiouy]l)e$")           # an l after a consonant takes the e along: "ta-ble"
SHOWN = 5                                                   # repeated trigrams


def words(text: str) -> list[str]:
    """The words and Chinese characters, in lower case."""
    return WORD.findall(text.casefold())


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence."""
    return [found for part in END.split(text) if (found := words(part))]


def syllables(word: str) -> int:
    """By the rule above."""
    return max(1, len(VOWELS.findall(word)) - bool(SILENT.search(word)))


def longest_repeat(ids: np.ndarray) -> tuple[int, int]:
    """(first place, length) of the longest run in ids [N] that stands at two places, which may overlap; (N, 0) if none.

    A number for each run of w makes one for each run of up to 2w, for it begins and ends with a run of w: so the length
    doubles while a run is there twice, and is then searched for in between.
    """
    def longer(step):
        """Numbers of the runs that reach `step` further than those that `names` are numbers of."""
        return np.unique(names[:-step] * (names.max() + 1) + names[step:], return_inverse=True)[1] \
            if step < len(names) else names[:0]

    def twice(names):
        _, first, count = np.unique(names, return_index=True, return_counts=True)
        return int(first[count > 1].min(initial=len(ids)))

    names, width, place = np.asarray(ids, np.int64), 1, twice(ids)
    if place == len(ids):
        return place, 0
    while (further := twice(wide := longer(width))) < len(ids):
        names, width, place = wide, 2 * width, further
    length = step = width
    while step := step // 2:
        if (further := twice(longer(length + step - width))) < len(ids):
            place, length = further, length + step
    return place, length


def phrase(run: Sequence[str]) -> str:
    """The words of a run as a text."""
    return re.sub(rf"(?<={HAN}) (?={HAN})", "", " ".join(run))


def measures(texts: Sequence[str]) -> dict:
    """The measures of documents, by name; None where there is nothing to measure."""
    parted = [sentence for text in texts for sentence in sentences(text)]
    chinese = [sentence for sentence in parted if any(map(CHINESE.match, sentence))]
    english = [sentence for sentence in parted if not any(map(CHINESE.match, sentence))]
    spoken = [word for sentence in english for word in sentence]
    characters = sum(bool(CHINESE.match(word)) for sentence in chinese for word in sentence)
    length = len(spoken) / len(english) if english else None
    per_word = sum(map(syllables, spoken)) / len(spoken) if english else None
    found = {"sentences": len(parted), "words": sum(map(len, parted)) - characters, "chinese_characters": characters,
             "words_per_sentence": length, "syllables_per_word": per_word,
             "reading_ease": None if length is None or per_word is None else 206.835 - 84.6 * per_word - 1.015 * length,
             "characters_per_sentence": characters / len(chinese) if chinese else None}
    documents = [words(text) for text in texts]
    for n in (1, 2, 3):
        grams = Counter(gram for run in documents for gram in zip(*(run[i:] for i in range(n)), strict=False))
        found[f"distinct_{n}"] = len(grams) / grams.total() if grams else None
    number = {word: i for i, word in enumerate(dict.fromkeys(word for run in documents for word in run))}
    joined, ids = [], []
    for i, run in enumerate(documents):
        joined += [*run, ""]
        ids += [*map(number.__getitem__, run), len(number) + i]         # a number of its own ends a document
    place, length = longest_repeat(np.array(ids, np.int64))
    return found | {"longest_repeat": phrase(joined[place:place + length]), "longest_repeat_words": length,
                    "repeated_trigrams": [[phrase(gram), count] for gram, count in grams.most_common(SHOWN)
                                          if count > 1]}
