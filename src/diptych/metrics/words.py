"""A caption's words, as the official caption scores count them: the Penn Treebank's, in lower case, most marks left out."""

from __future__ import annotations

import re

_ALIKE = str.maketrans({"’": "'", "‘": "'", "´": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_DROPPED = {"'", '"', "`", ".", "...", "?", "!", ",", ":", "-", "--", ";"}
_TWO_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b")
_NOT = re.compile(r"(?<=[a-z])n't\b")

_ENDING = r"'(?:s|m|d|ll|re|ve)(?!\w)"
_POINTED = r"(?:[a-z]\.){2,}|\b(?:mr|mrs|ms|dr|jr|sr|st|vs|etc|prof|gen|lt|sgt|capt|inc|co|corp|ltd)\."
_WORD = re.compile(
    rf"n't\b|'n'|'\d0s|{_ENDING}|o'clock|ma'am|{_POINTED}|\d+(?:[.,:/]\d+)+|\w+(?:\.(?:com|org|net)\b|[-/]\w+)*"
    r"|\.{2,}|-{2,}|[?!]{2,}|\S"
)


def caption_words(caption: str) -> list[str]:
    """The words of a caption in lower case: 's, n't, 're and their like by themselves; hyphened words, numbers and
    abbreviations whole; quotes, full stops, commas, colons, semicolons, dashes, question and exclamation marks left out.

    Brackets stay as words ("-lrb-"): the official scripts drop them in upper case alone, and published scores have them.
    Differs: those scripts call a Java program, Stanford's PTBTokenizer 3.4.1, which knows more abbreviations, and cuts
    addresses and emoticons by rules of its own. Of Flickr8k's 35,000 captions of train and val 3 are cut otherwise here.
    """
    text = _TWO_WORDS.sub(lambda m: " ".join(part for part in m.groups() if part), caption.translate(_ALIKE).lower())
    found: list[str] = [_BRACKETS.get(word) or word for word in _WORD.findall(_NOT.sub(" n't", text))]
    return [word for word in found if word not in _DROPPED and set(word) not in ({"."}, {"-"})]
