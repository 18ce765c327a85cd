"""Answer classes of VQA classifiers: the answer list, soft target scores, and the prior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from diptych.data.sources.base import DataError, Questioned
from diptych.data.sources.paths import data_in_json, read_text

Normalise = Callable[[str], str]


def soft_scores(answers: Sequence[str], normalise: Normalise) -> dict[str, float]:
    """VQA accuracy of each answer: 0.3, 0.6, 0.9 or 1 for 1, 2, 3 or more of ten annotators (Antol et al., 2015).

    This is min(1, n / 3) averaged over the ten subsets of nine annotators. With other numbers of annotators, counts are
    scaled to ten: the answer of a single annotator scores 1.
    """
    counts = Counter(normalise(a) for a in answers)
    return {answer: min(1.0, 0.3 * n * 10 / len(answers)) for answer, n in counts.items()}


def answer_weights(answers: Sequence[str], normalise: Normalise) -> dict[str, float]:
    """The share of annotators who gave each answer (ALBEF, section 5): the weight of its loss. Empty answers have none.

    Source: ALBEF's official code, whose weights of a question sum to 1.
    """
    counts = Counter(normalise(a) for a in answers)
    return {answer: n / len(answers) for answer, n in counts.items() if answer}


def commonest(answers: Sequence[str], normalise: Normalise) -> str:
    """The most common answer; of several, the first alphabetically."""
    return largest(Counter(normalise(a) for a in answers))


def largest(counts: Counter[str]) -> str:
    """The answer with the largest count; of several, the first alphabetically."""
    return min(counts, key=lambda a: (-counts[a], a))


def answer_list(
    source: Questioned, normalise: Normalise, minimum: int = 9, max_answers: int | None = None
) -> list[str]:
    """Answers that are the most common one of at least `minimum` questions, by decreasing count, at most `max_answers`.

    ViLT uses 9, which gives 3,129 answers. Raises DataError if there is none.
    """
    counts: Counter[str] = Counter()
    for i in range(len(source)):
        if answers := source.question(i).answers:
            counts[commonest(answers, normalise)] += 1
    chosen = sorted((a for a, n in counts.items() if n >= minimum and a), key=lambda a: (-counts[a], a))[:max_answers]
    if not counts:
        raise DataError(withheld(source))
    if not chosen:
        raise DataError(
            f"{source.name} ({source.split}): no answer is the most common one of {minimum} questions (at most of "
            f"{max(counts.values())}); lower --min_answer_count"
        )
    return chosen


def answer_file(path: Path) -> list[str]:
    """The answers in a file: a JSON list of strings. Raises DataError."""
    answers = data_in_json(read_text(path), path)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{path}: expected a JSON list of answers, at least one")
    return answers


def withheld(source: Questioned) -> str:
    """Error text for a split whose questions have no answers."""
    return (
        f"{source.name} ({source.split}): its questions have no answers; put their *annotations*.json beside them, "
        "with the split in its name, or name another split"
    )


def answer_prior(source: Questioned, answers: Sequence[str], normalise: Normalise) -> list[float]:
    """Mean soft score of each answer over all questions."""
    totals = dict.fromkeys(answers, 0.0)
    for i in range(len(source)):
        for answer, score in soft_scores(source.question(i).answers, normalise).items():
            if answer in totals:
                totals[answer] += score
    return [total / len(source) for total in totals.values()]
