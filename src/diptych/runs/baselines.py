"""What can be reached without looking: the scores that a model must beat. No picture is opened, no model needed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from diptych.config.run import Evaluation
from diptych.data.loader import SkipCounter
from diptych.data.sources.ablations import Guess, guesses
from diptych.data.sources.answers import withheld
from diptych.data.sources.base import DataError, Question, Questioned
from diptych.data.sources.vqa import open_questions
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.metrics.recall import chance
from diptych.metrics.vqa import BEST_OF_ANY, best_accuracy, normalise_answer, vqa_accuracy
from diptych.objectives.itm import ITM
from diptych.runs.pretrain import statistics
from diptych.runs.scoring.gallery import open_gallery, readable_texts
from diptych.runs.training_data import division_of, say_division

Scores = dict[str, float]
ANY_SIZE = 1  # of pictures, which nobody looks at


def baselines(asked: Evaluation) -> dict[str, Scores]:
    """Each way to guess, with its scores under the names that an evaluation gives them. Raises DataError."""
    return TASKS[asked.task](asked)


def vqa(asked: Evaluation) -> dict[str, Scores]:
    """Guesses learned from the train split, by the official accuracy, over all questions and by kind; beside them the highest
    that any answer reaches.
    """
    train, test = open_questions(asked.data, "train"), open_questions(asked.data, asked.split)
    if not any(test.question(i).answers for i in range(len(test))):
        raise DataError(withheld(test))
    ways = guesses(train, normalise_answer)
    say_division(train)
    say_division(test, but=division_of(train))
    found = {name: accuracies(guess, test) for name, guess in ways.items()}
    return found | {BEST_OF_ANY: _means(test, lambda question: best_accuracy(question.answers))}


def accuracies(guess: Guess, test: Questioned) -> Scores:
    """The mean VQA accuracy of a guess, of all questions and of each kind. Raises ValueError where answers are withheld."""
    return _means(test, lambda question: vqa_accuracy(guess(question), question.answers))


def _means(test: Questioned, accuracy: Callable[[Question], float]) -> Scores:
    """The mean over all questions, and over those of each kind."""
    scores: dict[str, list[float]] = defaultdict(list)
    for question in map(test.question, range(len(test))):
        score = accuracy(question)
        scores["accuracy"].append(score)
        if question.kind:
            scores[f"accuracy, {question.kind}"].append(score)
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}


def retrieval(asked: Evaluation) -> dict[str, Scores]:
    """Recall of candidates drawn blindly from the gallery."""
    _, owners = readable_texts(open_gallery(asked, ANY_SIZE), SkipCounter(asked.max_skipped))
    captions = list(Counter(owners).values())
    blind, found = chance(captions), {"images": float(len(captions)), "texts": float(len(owners))}
    for way, recall in (("image to text", blind.image_to_text), ("text to image", blind.text_to_image)):
        found |= {f"{way} R@{k}": value for k, value in recall.items()}
    return {"chance": found}


def matching(asked: Evaluation) -> dict[str, Scores]:
    """The floors of matching and of masked words (in nats): half of the pictures are another's, and pieces are guessed by
    how often each comes in the captions.
    """
    facts = statistics(open_gallery(asked, ANY_SIZE), Tokenizer())
    prior = ITM().chance_loss(facts).value
    return {"chance": {"itm": prior, "itm/accuracy": 0.5, "mlm": facts["unigram_entropy"]}}


TASKS: dict[str, Callable[[Evaluation], dict[str, Scores]]] = {"vqa": vqa, "retrieval": retrieval, "matching": matching}
