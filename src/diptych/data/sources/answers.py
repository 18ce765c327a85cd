"""Answers as classes: the list a VQA classifier chooses from, and the soft scores it learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from diptych.data.sources.base import DataError, Questioned

Normalise = Callable[[str], str]


def soft_scores(answers: Sequence[str], normalise: Normalise) -> dict[str, float]:
    """Each answer's VQA accuracy: 0.3, 0.6, 0.9 or 1 as 1, 2, 3 or more of ten people gave it (Antol et al., 2015).

    This is min(1, n / 3) averaged over the ten ways to leave one person out. Where fewer or more than ten answered,
    counts are scaled to ten: a question with a single answer gives it 1.
    """
    counts = Counter(normalise(a) for a in answers)
    return {answer: min(1.0, 0.3 * n * 10 / len(answers)) for answer, n in counts.items()}


def commonest(answers: Sequence[str], normalise: Normalise) -> str:
    """What most people answered; of several, the first in the alphabet."""
    return largest(Counter(normalise(a) for a in answers))


def largest(counts: Counter[str]) -> str:
    """The largest count's answer; of several, the first in the alphabet."""
    return min(counts, key=lambda a: (-counts[a], a))


def answer_list(source: Questioned, normalise: Normalise, minimum: int = 9, most: int | None = None) -> list[str]:
    """The answers that are the commonest of at least `minimum` questions, commonest first (ViLT: 9 gives 3,129).

    Raises DataError where none is.
    """
    counts: Counter[str] = Counter()
    for i in range(len(source)):
        if given := source.question(i).answers:
            counts[commonest(given, normalise)] += 1
    kept = sorted((a for a, n in counts.items() if n >= minimum and a), key=lambda a: (-counts[a], a))[:most]
    if not counts:
        raise DataError(withheld(source))
    if not kept:
        raise DataError(
            f"{source.name} ({source.split}): no answer is the commonest of {minimum} questions (of {max(counts.values())} at "
            "most); lower --min_answer_count"
        )
    return kept


def withheld(source: Questioned) -> str:
    """That none of a split's questions has an answer, as an error says it."""
    return (
        f"{source.name} ({source.split}): its questions have no answers; put their *annotations*.json beside them, with the "
        "split in its name, or name another split"
    )


def answer_prior(source: Questioned, answers: Sequence[str], normalise: Normalise) -> list[float]:
    """The mean soft score of each answer over all questions."""
    totals = dict.fromkeys(answers, 0.0)
    for i in range(len(source)):
        for answer, score in soft_scores(source.question(i).answers, normalise).items():
            if answer in totals:
                totals[answer] += score
    return [total / len(source) for total in totals.values()]
