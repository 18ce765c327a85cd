"""Image classification: how often the likeliest class is the true one, and how often it is among the first five."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import track

from diptych.data.loader import SkipCounter, evaluation_loader
from diptych.data.sources.labelled import Labelled, LabelledExamples
from diptych.report import AnswerExample
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import SHOWN, EvaluatedModel, Result, draw_examples, evenly_spaced
from diptych.runs.training_data import say_division
from diptych.tasks.classification import Classification

BATCH = 128
FIRST = 5


def classification(subject: EvaluatedModel) -> Result:
    """Accuracy at 1 and at 5, beside chance. Raises DataError, RunError."""
    asked, module = subject.asked, subject.module
    if not isinstance(module, Classification):
        raise RunError("classification needs a run of `diptych finetune classification`")
    if asked.shuffle_captions:
        raise RunError("--shuffle_captions deals captions, for retrieval and matching")
    source, classes = Labelled(Path(asked.data), asked.split), subject.facts["classes"]
    say_division(source)
    if source.classes != classes:
        raise RunError(f"{asked.data} has other classes than the run learned")
    food, first = LabelledExamples(source, subject.shows), min(FIRST, len(classes))
    tally, rows = SkipCounter(asked.max_skipped), []
    batches = evaluation_loader(food, BATCH, workers=asked.workers)
    for loaded in track(batches, description="classifying", total=-(-len(food) // BATCH)):
        tally.add(len(loaded.batch), loaded.skipped)
        batch = loaded.batch.to(subject.device)
        assert batch.image is not None
        likely = module.model.classify(batch.image).float().softmax(1).topk(first, 1)
        for index, truth, values, places in zip(
            batch.ids.tolist(), batch.labels["class"].tolist(), likely.values.tolist(), likely.indices.tolist(), strict=True
        ):  # fmt: skip
            told = [(classes[place], value) for place, value in zip(places, values, strict=True)]
            row = {"index": index, "image": source.where(index), "class": told[0][0], "truth": classes[truth]}
            rows.append(row | {"probable": told, "right": places[0] == truth, "among_first": truth in places})
    tally.check()
    n = len(rows)
    metrics = {"images": float(n), "skipped": float(tally.bad), "accuracy": sum(row["right"] for row in rows) / n}
    metrics |= {f"accuracy at {first}": sum(row["among_first"] for row in rows) / n, "chance": 1 / len(classes)}

    def example(row: dict[str, Any]) -> AnswerExample:
        picture, right = source.image(row["index"]), float(row["right"])
        return AnswerExample(picture, "what is this?", row["probable"][:3], row["truth"], right)

    return Result(
        metrics, rows, lambda: draw_examples(evenly_spaced(rows, SHOWN), example), list(tally.listed.values())
    )
