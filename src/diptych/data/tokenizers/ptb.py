"""Penn Treebank word tokenizer, as NLTK's `word_tokenize` has it (version 3.10): VSE++ and SCAN publish lists of these
words.

Source: the Penn Treebank's tokenizer.sed (R. MacIntyre, 1995) with the extensions of NLTK's NLTKWordTokenizer, whose
words of one sentence are equal to those here.
Differs: NLTK finds the ends of sentences with a trained model (punkt). Here a full stop before white space ends one
unless it follows a single letter, a word with another full stop in it, or one of ABBREVIATIONS. The control characters
U+001C to U+001F are white space here. In 2017, when the lists were made, NLTK did not yet separate an opening single
quote from its word ('go).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CLOSING = "])}>\"'»”’"
"""What may follow the full stop that ends a sentence."""
ABBREVIATIONS = frozenset(
    ["a.m", "co", "corp", "dr", "etc", "inc", "jr", "ltd", "mr", "mrs", "ms", "mt", "p.m", "sr", "st", "u.s", "vs"]
)

_CHUNK = re.compile(r"\S+")
_APART = r" \g<0> "
_OPENING_QUOTES = (
    (re.compile(r"[«“‘„]|`+"), _APART),
    (re.compile(r'^"'), "``"),
    (re.compile("``"), _APART),
    (re.compile(r"(?<=[ (\[{<])(?:\"|'')"), "`` "),
    (re.compile(r"(?<!\w)'(?!(?:[mtsdn]|re|ve|ll)\b)(?=\w)", re.IGNORECASE), "' "),
)
_PUNCTUATION = (
    (re.compile(r"([:,])(\D)"), r" \1 \2"),  # of two in a row the second stays on what follows, as in the Source
    (re.compile(r"[:,]$|\.{2,}|[;@#$%&?!\u2012-\u2015]"), _APART),
    (re.compile(r"(?<=[^'])' "), " ' "),
    (re.compile(r"[*()\[\]{}<>]|--"), _APART),
)
_CLOSING_QUOTES = (
    (re.compile(r"[»”’]"), _APART),
    (re.compile(r"''|\""), " '' "),
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<=[^' ])(?:'[sSmMdD]?) "), _APART),
    (re.compile(r"(?<=[^' ])(?:'ll|'LL|'re|'RE|'ve|'VE|n't|N'T) "), _APART),
)
_PARTS = (("can", "not"), ("d", "'ye"), ("gim", "me"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("more", "'n"))
_CONTRACTIONS = (
    *((re.compile(rf"\b({first})({second})\b", re.IGNORECASE), r" \1 \2 ") for first, second in _PARTS),
    (re.compile(r"\b(wan)(na)(?=\s)", re.IGNORECASE), r" \1 \2 "),
    *((re.compile(rf" ('t)({second})\b", re.IGNORECASE), r" \1 \2 ") for second in ("is", "was")),
)


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order; double quotes as `` and ''."""
    return [word for sentence in sentences(text) for word in _sentence_words(sentence)]


def sentences(text: str) -> Iterator[str]:
    """The parts of a text up to each full stop that ends a sentence, and the rest."""
    start = 0
    for chunk in _CHUNK.finditer(text):
        if _ends_sentence(chunk.group()):
            yield text[start : chunk.end()].strip()
            start = chunk.end()
    if rest := text[start:].strip():
        yield rest


def _ends_sentence(chunk: str) -> bool:
    word = chunk.rstrip(CLOSING)
    if not word.endswith(".") or word.endswith(".."):
        return False
    word = word[:-1].lower().lstrip("([{<\"'`")
    return not ((len(word) == 1 and word.isalpha()) or "." in word or word in ABBREVIATIONS)


def _sentence_words(sentence: str) -> list[str]:
    """The words of one sentence: the rules insert spaces, one after the other, and the words lie between them."""
    text = _substitute(sentence, _OPENING_QUOTES)
    text = _substitute(_separate_final_stop(text), _PUNCTUATION)
    return _substitute(f" {text} ", _CLOSING_QUOTES + _CONTRACTIONS).split()


def _substitute(text: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _separate_final_stop(text: str) -> str:
    head = text.rstrip().rstrip(CLOSING + " ")
    if len(head) > 1 and head[-1] == "." != head[-2]:
        return f"{head[:-1]} . {text[len(head) :]} "
    return text
