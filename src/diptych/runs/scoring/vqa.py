"""Visual question answering: the most probable answer of each question, scored by the official VQA accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from diptych.batch import Batch, Text
from diptych.config import tasks as settings
from diptych.data.examples import QuestionExamples
from diptych.data.loader import SkipCounter, evaluation_loader
from diptych.data.sources.base import Questioned
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.metrics.vqa import BEST_OF_ANY, BEST_OF_LIST, AnswerList, best_accuracy, normalise_answer, vqa_accuracy
from diptych.report import AnswerExample
from diptych.runs.finetune import questions
from diptych.runs.scoring.base import MAX_EXAMPLES, Result, draw_examples, evenly_spaced
from diptych.runs.training_data import say_division
from diptych.tasks.vqa import ClosedVQA, OpenVQA

BATCH = 64
TOP_K = 3  # answers kept in predictions
CANDIDATES = 128  # answers that a decoder scores in full (ALBEF, BLIP)


def vqa(loaded: LoadedModel, config: settings.VQA) -> Result:
    """VQA accuracy over all questions and by question type, with its upper bounds, and a file for the leaderboard.

    Raises:
        DataError: the data cannot be read.
        RunError: the run is of another task, or has no answers to rank.
    """
    if not isinstance(loaded.module, ClosedVQA | OpenVQA):
        raise RunError("vqa needs a run of `diptych finetune vqa`")
    answers = loaded.saved.labels
    if not answers:
        raise RunError(
            "the run's decoder ranks a list of answers, and the run has none; import it again with --answers FILE"
        )
    rank = answer_ranker(loaded, answers)
    source = questions(config.data, config.split, config.ablate, loaded.image_settings.shorter_side)
    say_division(source)
    examples = QuestionExamples(source, loaded.tokenizer, loaded.image_input, answers, normalise_answer)
    counter, rows = SkipCounter(config.max_skipped), []
    batches = evaluation_loader(examples, BATCH, workers=config.workers)
    for part in track(batches, description="answering", total=-(-len(examples) // BATCH)):
        counter.add(len(part.batch), part.skipped)
        top_values, top_indices = (top.tolist() for top in rank(part.batch.to(loaded.device)))
        for index, values, indices in zip(part.batch.ids.tolist(), top_values, top_indices, strict=True):
            rows.append(_prediction(source, index, [(answers[i], v) for i, v in zip(indices, values, strict=True)]))
    counter.check()
    skipped = list(counter.skipped.values())
    # a leaderboard expects an answer to every question: a skipped one gets the most frequent answer of training
    answered = [(row["question_id"], row["answer"]) for row in rows]
    answered += [(source.question(sample.id).id, answers[0]) for sample in skipped]
    results = [{"question_id": number, "answer": answer} for number, answer in answered]
    metrics = {"questions": len(rows), "skipped": counter.num_skipped} | _accuracies(source, rows, answers)
    predictions = [{name: value for name, value in row.items() if name != "index"} for row in rows]
    examples_of_rows = partial(draw_examples, _right_and_wrong(rows), partial(_example, source))
    return Result(metrics, predictions, examples_of_rows, skipped, {f"vqa_{config.split}_results.json": results})


def answer_ranker(
    loaded: LoadedModel, answers: Sequence[str], among: Sequence[int] | None = None, top_k: int = TOP_K
) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """A function from a batch of questions to the top answers: probabilities (b, k) and indices in `answers` (b, k).

    A decoder ranks the CANDIDATES answers whose first token is likeliest; their probabilities are among each other.

    Args:
        answers: of a classifier all of its classes, in order; of a decoder any texts.
        among: of a classifier the indices of the classes to choose from; None: all.
    """
    module = loaded.module
    if isinstance(module, OpenVQA):
        candidates = loaded.tokenizer.encode(list(answers)).to(loaded.device)
        return partial(_rank_texts, module, candidates, min(top_k, len(answers)))
    assert isinstance(module, ClosedVQA)
    columns = torch.tensor(range(len(answers)) if among is None else among, device=loaded.device)
    return partial(_rank_classes, module, columns, min(top_k, len(columns)))


def _rank_texts(module: OpenVQA, candidates: Text, k: int, batch: Batch) -> tuple[Tensor, Tensor]:
    ranked = module.rank(module.encode_question(batch), candidates, min(CANDIDATES, len(candidates)))
    return ranked.probabilities[:, :k], ranked.candidates[:, :k]


def _rank_classes(module: ClosedVQA, columns: Tensor, k: int, batch: Batch) -> tuple[Tensor, Tensor]:
    values, places = module.logits(batch).sigmoid().index_select(1, columns).topk(k, 1)
    return values, columns[places]


def _prediction(source: Questioned, index: int, best: list[tuple[str, float]]) -> dict[str, Any]:
    """One prediction, with its score if the split's answers are public."""
    question, answer = source.question(index), best[0][0]
    row = {"index": index, "question_id": question.id, "question": question.text, "image": source.where(index)}
    row |= {"answer": answer, "probable": best}
    if question.answers:
        row |= {"truth": list(dict.fromkeys(question.answers)), "score": vqa_accuracy(answer, question.answers)}
    return row


def _accuracies(source: Questioned, rows: list[dict[str, Any]], answers: Sequence[str]) -> dict[str, float]:
    """The mean accuracy over all questions and by type, and its upper bounds: of any text, and of the run's `answers`.

    Empty if the split's answers are withheld.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    answer_list = AnswerList.of(answers)
    for row in rows:
        if "score" in row:
            question = source.question(row["index"])
            scores["accuracy"].append(row["score"])
            scores[BEST_OF_ANY].append(best_accuracy(question.answers))
            scores[BEST_OF_LIST].append(best_accuracy(question.answers, answer_list))
            if question.kind:
                scores[f"accuracy, {question.kind}"].append(row["score"])
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}


def _right_and_wrong(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The predictions to show: half right ones and half wrong ones, as far as there are."""
    right = [row for row in rows if row.get("score", -1) >= 0.5]
    wrong = [row for row in rows if 0 <= row.get("score", -1) < 0.5]
    chosen = evenly_spaced(right, MAX_EXAMPLES - min(len(wrong), MAX_EXAMPLES // 2))
    return [*chosen, *evenly_spaced(wrong, MAX_EXAMPLES - len(chosen))]


def _example(source: Questioned, row: dict[str, Any]) -> AnswerExample:
    image, truth = source.image(source.question(row["index"]).image), ", ".join(row["truth"])
    return AnswerExample(image, row["question"], row["probable"], truth, row["score"])
