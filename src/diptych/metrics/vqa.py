"""VQA accuracy and the normalisation of answers it is defined over (Antol et al., ICCV 2015; VQA v2's evaluation).

Equal to the official script, its slips included, since published scores went through them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

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
BEST_OF_ANY = "best possible accuracy, any text"  # the names of `best_accuracy`'s means
BEST_OF_LIST = "best possible accuracy, the run's answers"

_MOST_POINTS = 32  # the official script hands a flag of this value on as the count


def normalise_answer(answer: str) -> str:
    """An answer as VQA compares it: lower case, without articles and most punctuation, numbers up to ten as digits.

    A mark that touches a space is dropped, one inside a word becomes a space ("black-and-white"), and where digits
    hold a comma ("1,000") every mark is dropped. Points stay in decimals; apostrophes and colons stay. Differs: where
    nothing would be left, articles stay ("A" as the letter of a choice, "The"), and where there is nothing else, marks ("?");
    the official script makes all such answers equal.
    """
    answer = _as_written(answer)
    text, thousands = answer, _DIGIT_COMMA_DIGIT.search(answer) is not None
    for mark in _PUNCTUATION:
        loose = thousands or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if loose else " ")
    words = [_NUMBERS.get(word, word) for word in _POINT.sub("", text, count=_MOST_POINTS).lower().split()]
    kept = [_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(kept or words or answer.lower().split())


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """min(1, matches / 3) averaged over the ways to leave one annotator out, in [0, 1].

    Answers are normalised on both sides, but where all annotators wrote the same to the letter they are compared as
    written. Where `given` is one answer (which the official script does not know): plain equality, normalised. Raises
    ValueError where nothing was given.
    """
    form = _compared_form(given)
    return _share(sum(form(other) == form(answer) for other in given), len(given))


class AnswerList(NamedTuple):
    """The answers that a model can give, in the two forms in which accuracy compares them."""

    written: frozenset[str]
    normalised: frozenset[str]

    @classmethod
    def of(cls, answers: Iterable[str]) -> AnswerList:
        answers = list(answers)
        return cls(frozenset(map(_as_written, answers)), frozenset(map(normalise_answer, answers)))


def best_accuracy(given: Sequence[str], answers: AnswerList | None = None) -> float:
    """The highest VQA accuracy that any text, or any of `answers`, reaches on a question, in [0, 1].

    Below 1 where fewer than four annotators agree. With normalised `answers` also where all annotators wrote the same
    with a capital or a number word, and where no annotator's answer is in the list. Raises ValueError where nothing
    was given.
    """
    form = _compared_form(given)
    counts = Counter(map(form, given))
    if answers is not None:
        known = answers.written if form is _as_written else answers.normalised
        counts = {answer: count for answer, count in counts.items() if answer in known}
    return max((_share(count, len(given)) for count in counts.values()), default=0.0)


def _compared_form(given: Sequence[str]) -> Callable[[str], str]:
    """What is done to answers before they are compared. Raises ValueError where nothing was given."""
    if not given:
        raise ValueError("no answers were given: this split's answers are withheld, and it cannot be scored here")
    agreed = len(given) > 1 and len(set(map(_as_written, given))) == 1
    return _as_written if agreed else normalise_answer


def _share(matches: int, people: int) -> float:
    """The accuracy of an answer that so many of all people gave."""
    if people == 1:
        return float(matches)
    left_out = matches * min(1.0, (matches - 1) / 3) + (people - matches) * min(1.0, matches / 3)
    return left_out / people


def _as_written(answer: str) -> str:
    """On one line, without spaces around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()
