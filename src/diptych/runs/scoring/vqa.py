"""Visual question answering: the most probable answer of each question, by the official accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.progress import track
from torch import Tensor

from diptych.batch import Batch
from diptych.config.run import Finetune
from diptych.data.examples import QuestionExamples
from diptych.data.loader import SkipCounter, evaluation_loader
from diptych.data.sources.base import Questioned
from diptych.metrics.vqa import BEST_OF_ANY, BEST_OF_LIST, AnswerList, best_accuracy, normalise_answer, vqa_accuracy
from diptych.report import AnswerExample
from diptych.runs.finetune import questions
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import SHOWN, EvaluatedModel, Result, draw_examples, evenly_spaced
from diptych.runs.tokenizer import tokenizer_of
from diptych.runs.training_data import say_division
from diptych.tasks.vqa import ClosedVQA, OpenVQA

BATCH = 64
FIRST = 3  # answers kept in predictions
CANDIDATES = 128  # that a decoder reads whole


def vqa(subject: EvaluatedModel) -> Result:
    """Accuracy over all questions and by kind, beside the highest that can be reached; the leaderboard's file besides. Raises
    DataError, RunError.
    """
    run, asked, module = subject.run, subject.asked, subject.module
    if not isinstance(module, ClosedVQA | OpenVQA) or not isinstance(run, Finetune):
        raise RunError("vqa needs a run of `diptych finetune vqa`")
    if asked.shuffle_captions:
        raise RunError(
            "--shuffle_captions deals captions, for retrieval and matching; vqa has --ablate image and --ablate text"
        )
    answers = subject.facts["answers"]
    if not answers:
        raise RunError("its decoder ranks given answers, and the run has none: import it again with --answers FILE")
    rank = ranking(subject, answers)
    source = questions(asked.data, asked.split, asked.ablate or run.ablate, subject.images.shorter_side)
    say_division(source)
    food = QuestionExamples(source, tokenizer_of(run), subject.shows, answers, normalise_answer)
    tally, rows = SkipCounter(asked.max_skipped), []
    batches = evaluation_loader(food, BATCH, workers=asked.workers)
    for loaded in track(batches, description="answering", total=-(-len(food) // BATCH)):
        tally.add(len(loaded.batch), loaded.skipped)
        values_, places_ = rank(loaded.batch.to(subject.device))
        for index, values, places in zip(loaded.batch.ids.tolist(), values_.tolist(), places_.tolist(), strict=True):
            rows.append(_row(source, index, [(answers[p], v) for p, v in zip(places, values, strict=True)]))
    tally.check()
    skipped = list(tally.listed.values())
    # a leaderboard wants an answer to every question: one that could not be read gets the commonest of training
    given = [(row["question_id"], row["answer"]) for row in rows]
    given += [(source.question(s.id).id, answers[0]) for s in skipped]
    results = [{"question_id": number, "answer": answer} for number, answer in given]
    metrics = {"questions": len(rows), "skipped": tally.bad} | _accuracies(source, rows, answers)
    predictions = [{name: value for name, value in row.items() if name != "index"} for row in rows]
    examples = partial(draw_examples, _chosen(rows), partial(_example, source))
    return Result(metrics, predictions, examples, skipped, {f"vqa_{asked.split}_results.json": results})


def ranking(subject: EvaluatedModel, answers: list[str]) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """From questions to the probabilities of the best answers, and which these are. A decoder ranks those whose first piece
    is likeliest (ALBEF and BLIP: 128 of them).
    """
    module, first = subject.module, min(FIRST, len(answers))
    candidates, k = tokenizer_of(subject.run).encode(answers).to(subject.device), min(CANDIDATES, len(answers))

    def rank(batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(module, OpenVQA):
            found = module.rank(module.question(batch), candidates, k)
            return found.probabilities[:, :first], found.candidates[:, :first]
        values, places = module.logits(batch).sigmoid().topk(first, 1)  # type: ignore[operator]
        return values, places

    return rank


def _row(source: Questioned, index: int, best: list[tuple[str, float]]) -> dict[str, Any]:
    """One prediction, and its score where the split's answers are public."""
    question, guess = source.question(index), best[0][0]
    row = {"index": index, "question_id": question.id, "question": question.text, "image": source.where(index)}
    row |= {"answer": guess, "probable": best}
    if question.answers:
        row |= {"truth": list(dict.fromkeys(question.answers)), "score": vqa_accuracy(guess, question.answers)}
    return row


def _accuracies(source: Questioned, rows: list[dict[str, Any]], answers: Sequence[str]) -> dict[str, float]:
    """The mean score, of all questions and of each kind, and the highest mean that any text and that the run's `answers`
    reach; nothing where answers are withheld.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    known = AnswerList.of(answers)
    for row in rows:
        if "score" in row:
            question = source.question(row["index"])
            scores["accuracy"].append(row["score"])
            scores[BEST_OF_ANY].append(best_accuracy(question.answers))
            scores[BEST_OF_LIST].append(best_accuracy(question.answers, known))
            if question.kind:
                scores[f"accuracy, {question.kind}"].append(row["score"])
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}


def _chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows to show: half right answers, half wrong ones, as far as there are."""
    right = [row for row in rows if row.get("score", -1) >= 0.5]
    wrong = [row for row in rows if 0 <= row.get("score", -1) < 0.5]
    chosen = evenly_spaced(right, SHOWN - min(len(wrong), SHOWN // 2))
    return [*chosen, *evenly_spaced(wrong, SHOWN - len(chosen))]


def _example(source: Questioned, row: dict[str, Any]) -> AnswerExample:
    picture, truth = source.image(source.question(row["index"]).image), ", ".join(row["truth"])
    return AnswerExample(picture, row["question"], row["probable"], truth, row["score"])
