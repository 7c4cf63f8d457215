"""Measure the readability of a text and its repetition, without a model.

    word                letters and digits, joined by hyphens and apostrophes, or a single Chinese character
    sentence            ends at . ! ? … before white space, at 。！？ anywhere, and at an empty line; it has a word or
                        more.  ("Mr. Smith" counts as two.)  It is Chinese if it has a Chinese character, else English
    syllables           groups of the vowels a e i o u y, without a final e after a consonant ("make", but not "table"
                        or "me"); at least one
    reading ease        206.835 - 84.6 syllables/words - 1.015 words/sentences, of the English sentences (Flesch, 1948);
                        100 is very easy, 0 very hard
    distinct-n          distinct n-grams / n-grams.  (Li et al., 2016, divide by the number of words instead, which is
                        larger by n - 1 for each document.)

Case is ignored.  No n-gram spans two documents.
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
SILENT = re.compile("(?:[^aeiouyl]|[aeiouy]l)e$")           # not after a consonant and l: "ta-ble"
SHOWN = 5                                                   # repeated trigrams in a report


def words(text: str) -> list[str]:
    """The words and Chinese characters, case-folded."""
    return WORD.findall(text.casefold())


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence."""
    return [sentence for part in END.split(text) if (sentence := words(part))]


def syllables(word: str) -> int:
    """The number of syllables of an English word, by the rule above."""
    return max(1, len(VOWELS.findall(word)) - bool(SILENT.search(word)))


def longest_repeat(ids: np.ndarray) -> tuple[int, int]:
    """(start, length) of the longest run in ids [N] that occurs twice, overlaps included; (N, 0) if none does.

    Equal runs of length w have equal numbers.  The runs of w at its start and end determine a run of up to 2w, so two
    numbers give its number.  The length doubles while a run repeats; bisection then finds the longest one.
    """
    def longer(step):
        """Number the runs that are longer by `step` than those numbered by `names`."""
        return np.unique(names[:-step] * (names.max() + 1) + names[step:], return_inverse=True)[1] \
            if step < len(names) else names[:0]

    def repeated(names):
        """The first position of a run that occurs twice; N if there is none."""
        _, first, count = np.unique(names, return_index=True, return_counts=True)
        return int(first[count > 1].min(initial=len(ids)))

    names, width, start = np.asarray(ids, np.int64), 1, repeated(ids)
    if start == len(ids):
        return start, 0
    while (first := repeated(wide := longer(width))) < len(ids):
        names, width, start = wide, 2 * width, first
    length = step = width
    while step := step // 2:
        if (first := repeated(longer(length + step - width))) < len(ids):
            start, length = first, length + step
    return start, length


def phrase(run: Sequence[str]) -> str:
    """Join words with spaces, Chinese characters without."""
    return re.sub(rf"(?<={HAN}) (?={HAN})", "", " ".join(run))


def measures(texts: Sequence[str]) -> dict:
    """Measure documents: {name: value}; None for a measure that is undefined, because there are no sentences, say."""
    split = [sentence for text in texts for sentence in sentences(text)]
    chinese = [sentence for sentence in split if any(map(CHINESE.match, sentence))]
    english = [sentence for sentence in split if not any(map(CHINESE.match, sentence))]
    spoken = [word for sentence in english for word in sentence]
    characters = sum(bool(CHINESE.match(word)) for sentence in chinese for word in sentence)
    length = len(spoken) / len(english) if english else None
    per_word = sum(map(syllables, spoken)) / len(spoken) if english else None
    ease = None if length is None or per_word is None else 206.835 - 84.6 * per_word - 1.015 * length
    results = {"sentences": len(split), "words": sum(map(len, split)) - characters, "chinese_characters": characters,
               "words_per_sentence": length, "syllables_per_word": per_word, "reading_ease": ease,
               "characters_per_sentence": characters / len(chinese) if chinese else None}
    documents = [words(text) for text in texts]
    for n in (1, 2, 3):
        grams = Counter(gram for run in documents for gram in zip(*(run[i:] for i in range(n)), strict=False))
        results[f"distinct_{n}"] = len(grams) / grams.total() if grams else None
    number = {word: i for i, word in enumerate(dict.fromkeys(word for run in documents for word in run))}
    joined, ids = [], []
    for i, run in enumerate(documents):
        joined += [*run, ""]
        ids += [*map(number.__getitem__, run), len(number) + i]         # a unique number ends each document
    start, length = longest_repeat(np.array(ids, np.int64))
    return results | {"longest_repeat": phrase(joined[start:start + length]), "longest_repeat_words": length,
                      "repeated_trigrams": [[phrase(gram), count] for gram, count in grams.most_common(SHOWN)
                                            if count > 1]}
