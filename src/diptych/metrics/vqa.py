"""VQA accuracy and the normalisation of answers it is defined over (Antol et al., ICCV 2015; VQA v2's evaluation).

Equal to the official script, its slips included, since published scores went through them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}

_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
    wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd
    you'd've you'll you're you've
"""


def _lacking_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# Only what people misspell: "y'alld've" is put right, "well" and "shed" are words of their own. One entry of the
# official table runs the other way, and scores depend on it.
_CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _lacking_one_apostrophe(word)}
_CONTRACTIONS |= {"somebody'd": "somebodyd"}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_POINT = re.compile(r"\.(?!\d)")
_MOST_POINTS = 32  # the official script hands a flag of this value on as the count


def normalise_answer(answer: str) -> str:
    """An answer as VQA compares it: lower case, without articles and most punctuation, numbers up to ten as digits.

    A mark that touches a space is dropped, one inside a word becomes a space ("black-and-white"), and where digits
    hold a comma ("1,000") every mark is dropped. Points stay in decimals; apostrophes and colons stay.
    """
    answer = _as_written(answer)
    text, thousands = answer, _DIGIT_COMMA_DIGIT.search(answer) is not None
    for mark in _PUNCTUATION:
        loose = thousands or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if loose else " ")
    words = [_NUMBERS.get(word, word) for word in _POINT.sub("", text, count=_MOST_POINTS).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """min(1, matches / 3) averaged over the ways to leave one annotator out, in [0, 1].

    Answers are normalised on both sides, but where all annotators wrote the same to the letter they are compared as
    written. Where `given` is one answer (which the official script does not know): plain equality, normalised. Raises
    ValueError where nothing was given.
    """
    if not given:
        raise ValueError("no answers were given: this split's answers are withheld, and it cannot be scored here")
    agreed = len(given) > 1 and len({_as_written(other) for other in given}) == 1
    read = _as_written if agreed else normalise_answer
    matches = [read(other) == read(answer) for other in given]
    if len(matches) == 1:
        return float(matches[0])
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def _as_written(answer: str) -> str:
    """On one line, without spaces around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()
