"""The search in Chinese, which writes no spaces between words: pairs of characters stand for words.

A query is cut as the pages are, so it is found wherever its characters stand side by side.
"""
import re

import snowballstemmer
from sphinx.search import SearchLanguage

WORD = re.compile(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+")
HAN = re.compile(r"[\u4e00-\u9fff]")


class Chinese(SearchLanguage):
    lang = "zh"
    language_name = "English"                               # of the stemmer: for the words that are not Chinese
    js_stemmer_rawcode = "english-stemmer.js"
    js_splitter_code = r"""
function splitQuery(query) {
  return (query.match(/[\u4e00-\u9fff]+|[^\s\p{P}\p{S}\u4e00-\u9fff]+/gu) || []).flatMap(word =>
    /[\u4e00-\u9fff]{2}/.test(word) ? [...word].slice(1).map((c, k) => word[k] + c) : [word]);
}
"""

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self.stemmer = snowballstemmer.stemmer("english")

    def split(self, input: str) -> list[str]:
        return [part for word in WORD.findall(input) for part in pairs(word)]

    def stem(self, word: str) -> str:
        return self.stemmer.stemWord(word.lower())


def pairs(word: str) -> list[str]:
    """The pairs of neighbors of a Chinese word; any other word is whole."""
    if len(word) < 2 or not HAN.match(word):
        return [word]
    return [word[k:k + 2] for k in range(len(word) - 1)]
