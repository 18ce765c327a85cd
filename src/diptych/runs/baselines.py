"""Baselines that a model must beat: scores of guessing without an image or a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from diptych.config.tasks import VQA, Evaluation, Grounding, Matching, Retrieval
from diptych.data.grounding import box_shares, true_boxes
from diptych.data.loader import SkipCounter
from diptych.data.regions.arrays import fixed_boxes
from diptych.data.sources.ablations import Guess, guesses
from diptych.data.sources.answers import withheld
from diptych.data.sources.base import BadSample, DataError, Question, Questioned, Skipped
from diptych.data.sources.division import division_of, say_division
from diptych.data.sources.grounding import open_expressions
from diptych.data.sources.vqa import open_questions
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.metrics.bootstrap import Scores, columns, means, means_of_rows
from diptych.metrics.boxes import blind_scores, ious
from diptych.metrics.recall import chance
from diptych.metrics.vqa import BEST_OF_ANY, best_accuracy, normalise_answer, vqa_accuracy
from diptych.models.common_recipes import BOX_SCALES
from diptych.objectives.itm import ITMLoss
from diptych.runs.pretrain import statistics
from diptych.tasks.gallery import open_gallery, readable_texts

ANY_SIZE = 1  # shorter side in pixels; no image is decoded


def baselines(settings: Evaluation) -> dict[str, Scores]:
    """Scores of each baseline, under the names that an evaluation of the task uses. Raises DataError."""
    return TASKS[settings.task](settings)


def vqa(settings: VQA) -> dict[str, Scores]:
    """Guesses from the answers of the train split, by official VQA accuracy: over all questions and for each kind.

    Beside them the highest accuracy that any answer reaches.
    """
    train, test = (open_questions(settings.data, split, settings.layout) for split in ("train", settings.split))
    if not any(test.question(i).answers for i in range(len(test))):
        raise DataError(withheld(test))
    guessers = guesses(train, normalise_answer)
    say_division(train)
    say_division(test, but=division_of(train))
    scores = {name: accuracies(guess, test) for name, guess in guessers.items()}
    return scores | {BEST_OF_ANY: _means(test, lambda question: best_accuracy(question.answers))}


def accuracies(guess: Guess, test: Questioned) -> Scores:
    """Mean VQA accuracy of a guess over all questions, and for each kind. Raises ValueError if answers are withheld."""
    return _means(test, lambda question: vqa_accuracy(guess(question), question.answers))


def _means(test: Questioned, accuracy: Callable[[Question], float]) -> Scores:
    """Means over all questions ("accuracy") and over those of each kind ("accuracy, KIND"), with their intervals."""
    rows, photographs = list[dict[str, float]](), list[int]()
    for question in map(test.question, range(len(test))):
        score = accuracy(question)
        rows.append({"accuracy": score} | ({f"accuracy, {question.kind}": score} if question.kind else {}))
        photographs.append(question.image)
    values = columns(rows)
    return Scores.of(means(values), means_of_rows(photographs, values))


def retrieval(settings: Retrieval) -> dict[str, Scores]:
    """Recall of a random ranking of the gallery."""
    _, owners = readable_texts(open_gallery(settings, ANY_SIZE), SkipCounter(settings.max_skipped))
    captions_per_image = list(Counter(owners).values())
    recall = chance(captions_per_image)
    scores = {"images": float(len(captions_per_image)), "texts": float(len(owners))}
    for direction, by_k in (("image to text", recall.image_to_text), ("text to image", recall.text_to_image)):
        scores |= {f"{direction} R@{k}": value for k, value in by_k.items()}
    return {"chance": Scores(scores)}


def matching(settings: Matching) -> dict[str, Scores]:
    """Chance losses in nats of ITM (half of the pairs match) and MLM (unigram entropy of the captions' tokens)."""
    facts = statistics(open_gallery(settings, ANY_SIZE), Tokenizer())
    prior = ITMLoss().chance_loss(facts).value
    return {"chance": Scores({"itm": prior, "itm/accuracy": 0.5, "mlm": facts["unigram_entropy"]})}


def grounding(settings: Grounding) -> dict[str, Scores]:
    """Accuracies at IoU 0.5 of regions chosen without a model, and their upper bound, of fixed boxes and of true boxes.

    Phrases whose box or image cannot be used are skipped, as in an evaluation. Raises DataError.
    """
    source = open_expressions(settings.data, settings.split, settings.layout)
    say_division(source)
    counter = SkipCounter(settings.max_skipped)
    fixed = {f"{len(boxes)} fixed boxes": boxes for boxes in (fixed_boxes(BOX_SCALES), fixed_boxes())}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in [*fixed, "true boxes"]}
    photographs: list[int] = []
    for index in range(len(source)):
        expression = source.expression(index)
        try:
            regions = fixed | {"true boxes": true_boxes(source, expression.image)}
            truth = box_shares([expression.box], source.size(expression.image), source.where(index))
        except BadSample as bad:
            counter.add(0, [Skipped(index, bad.where, bad.why)])
            continue
        counter.add(1, [])
        photographs.append(expression.image)
        for name, boxes in regions.items():
            rows[name].append(blind_scores(boxes[:, :4], ious(boxes[:, :4], truth[0, :4])))
    counter.check()
    values = {name: columns(of_regions) for name, of_regions in rows.items()}
    return {name: Scores.of(means(table), means_of_rows(photographs, table)) for name, table in values.items()}


TASKS: dict[str, Callable[[Any], dict[str, Scores]]] = {
    "vqa": vqa,
    "retrieval": retrieval,
    "grounding": grounding,
    "matching": matching,
}
