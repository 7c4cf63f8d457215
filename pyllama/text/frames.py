"""The special tokens around a text, which a tokenizer's post-processor adds.

A model has learned from texts with these tokens, and expects them: LLaMA <s> before each text, BERT [CLS] and [SEP].
"""
import tokenizers
from tokenizers import decoders, models, processors

WORD = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))     # any text is one token


def around(rust: tokenizers.Tokenizer, texts: int = 1) -> list[list[int]]:
    """The ids that the post-processor puts before a text and after it; of two texts, also between them."""
    word = WORD.encode("a")
    whole = rust.post_process(word, word if texts == 2 else None)
    text_of = [-1 if text is None else text for text in whole.sequence_ids]
    edges = [edge for text in range(texts) for edge in (text_of.index(text), text_of.index(text) + 1)]
    return [whole.ids[first:past] for first, past in zip([0, *edges[1::2]], [*edges[::2], len(whole.ids)], strict=True)]


def framed(rust: tokenizers.Tokenizer, first: str | None, last: str | None) -> tokenizers.Tokenizer:
    """A tokenizer that puts the token `first` before a text and `last` after each text of a pair: see frame()."""
    changed = tokenizers.Tokenizer.from_str(rust.to_str())
    changed.post_processor = frame(changed, first, last)
    return changed


def frame(rust: tokenizers.Tokenizer, first: str | None, last: str | None) -> processors.PostProcessor:
    """The post-processor with which a tokenizer puts `first` before a text and `last` after each text of a pair.

    Of its post-processor it keeps what changes the positions of tokens, and replaces what adds tokens.  Without one, a
    byte-level token has the positions of its characters without the space before them, as in GPT-2.
    """
    def template(*texts):
        """Each token has the type of its text."""
        return [*([f"{first}:0"] if first else []),
                *(part for text in texts for part in (text, *([f"{last}:{text[-1]}"] if last else [])))]

    special = [(token, rust.token_to_id(token)) for token in dict.fromkeys((first, last)) if token]
    whole = processors.TemplateProcessing(template("$A:0"), template("$A:0", "$B:1"), special)
    trim = processors.ByteLevel(trim_offsets=True) if isinstance(rust.decoder, decoders.ByteLevel) else None
    kept = trim if rust.num_special_tokens_to_add(False) else rust.post_processor or trim
    return processors.Sequence([kept, whole]) if kept else whole
