"""VQA accuracy, and the answer normalisation that it is defined on (Antol et al., ICCV 2015; VQA v2's evaluation).

Equal to the official script, its errors included, since published scores were computed with it.
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


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# From misspellings to contractions: "y'alld've" is corrected, "well" and "shed" are words of their own. One entry of
# the official table is reversed, and scores depend on it.
_CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _without_one_apostrophe(word)}
_CONTRACTIONS |= {"somebody'd": "somebodyd"}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_POINT = re.compile(r"\.(?!\d)")
BEST_OF_ANY = "upper bound on accuracy, any answer"  # names of the means of `best_accuracy`
BEST_OF_LIST = "upper bound on accuracy, the run's answers"

_MOST_POINTS = 32  # the official script passes a regex flag of this value as the count


def normalise_answer(answer: str) -> str:
    """The normalised answer: lower case, without articles and most punctuation, numbers up to ten as digits.

    A punctuation mark next to a space is dropped, one inside a word becomes a space ("black-and-white"), and in an
    answer with a comma between digits ("1,000") every mark is dropped. Periods stay in decimals; apostrophes and colons
    stay.
    Differs: an answer of articles only keeps them ("A" as the letter of a choice, "The"), and one of punctuation only
    keeps it ("?"); the official script makes all such answers empty, hence equal.
    """
    answer = _as_written(answer)
    text, thousands = answer, _DIGIT_COMMA_DIGIT.search(answer) is not None
    for mark in _PUNCTUATION:
        drop = thousands or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if drop else " ")
    words = [_NUMBERS.get(word, word) for word in _POINT.sub("", text, count=_MOST_POINTS).lower().split()]
    without_articles = [_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(without_articles or words or answer.lower().split())


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """min(1, matches / 3), averaged over the ways to leave one annotator out, in [0, 1].

    `references`: the annotators' answers. Answers are normalised on both sides, unless all annotators wrote
    exactly the same: then they are compared as written. With a single annotator (a case that the official script
    lacks): equality, normalised. Raises ValueError without answers.
    """
    form = _compared_form(references)
    return _accuracy(sum(form(other) == form(answer) for other in references), len(references))


class AnswerList(NamedTuple):
    """The answers that a model can predict, in the two forms in which accuracy compares them."""

    written: frozenset[str]
    normalised: frozenset[str]

    @classmethod
    def of(cls, answers: Iterable[str]) -> AnswerList:
        answers = list(answers)
        return cls(frozenset(map(_as_written, answers)), frozenset(map(normalise_answer, answers)))


def best_accuracy(references: Sequence[str], answers: AnswerList | None = None) -> float:
    """The highest VQA accuracy on a question of any text, or of any of `answers`, in [0, 1].

    Below 1 if fewer than four annotators agree. With normalised `answers` also if all annotators wrote the same
    with a capital or a number word, and if no annotator's answer is in the list. Raises ValueError without
    annotators' answers.
    """
    form = _compared_form(references)
    counts = Counter(map(form, references))
    if answers is not None:
        candidates = answers.written if form is _as_written else answers.normalised
        counts = {answer: count for answer, count in counts.items() if answer in candidates}
    return max((_accuracy(count, len(references)) for count in counts.values()), default=0.0)


def _compared_form(references: Sequence[str]) -> Callable[[str], str]:
    """The normalisation of answers before they are compared. Raises ValueError without answers."""
    if not references:
        raise ValueError(
            "expected annotators' answers, got none: this split's answers are withheld, and it cannot be scored here"
        )
    agreed = len(references) > 1 and len(set(map(_as_written, references))) == 1
    return _as_written if agreed else normalise_answer


def _accuracy(matches: int, annotators: int) -> float:
    """The accuracy of an answer that `matches` of all annotators gave."""
    if annotators == 1:
        return float(matches)
    total = matches * min(1.0, (matches - 1) / 3) + (annotators - matches) * min(1.0, matches / 3)
    return total / annotators


def _as_written(answer: str) -> str:
    """The answer on one line, without surrounding spaces."""
    return answer.replace("\n", " ").replace("\t", " ").strip()
