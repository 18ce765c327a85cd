"""Image classification: top-1 and top-5 accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import track

from diptych.config import tasks as settings
from diptych.data.loader import SkipCounter, evaluation_loader
from diptych.data.sources.labelled import Labelled, LabelledExamples
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.report import AnswerExample
from diptych.runs.scoring.base import MAX_EXAMPLES, Result, draw_examples, evenly_spaced
from diptych.runs.training_data import say_division
from diptych.tasks.classification import Classification
from diptych.tasks.common import required

BATCH = 128
TOP_K = 5


def classification(loaded: LoadedModel, config: settings.Classification) -> Result:
    """Top-1 and top-5 accuracy, with the chance level.

    Raises:
        DataError: the data cannot be read.
        RunError: the run is of another task, or the data have other classes than it was trained on.
    """
    module = loaded.module
    if not isinstance(module, Classification):
        raise RunError("classification needs a run of `diptych finetune classification`")
    source, classes = Labelled(Path(config.data), config.split), list(loaded.saved.labels)
    say_division(source)
    if source.classes != classes:
        raise RunError(
            f"{config.data} has {len(source.classes)} classes that are not the {len(classes)} that the run was trained "
            "on; expected the same names in the same order"
        )
    examples, k = LabelledExamples(source, loaded.image_input), min(TOP_K, len(classes))
    counter, rows = SkipCounter(config.max_skipped), []
    batches = evaluation_loader(examples, BATCH, workers=config.workers)
    for part in track(batches, description="classifying", total=-(-len(examples) // BATCH)):
        counter.add(len(part.batch), part.skipped)
        batch = part.batch.to(loaded.device)
        top = module.model.classify(required(batch.image, "image")).float().softmax(1).topk(k, 1)
        top_values, top_indices, labels = top.values.tolist(), top.indices.tolist(), batch.labels["class"].tolist()
        for index, label, values, indices in zip(batch.ids.tolist(), labels, top_values, top_indices, strict=True):
            probable = [(classes[i], value) for i, value in zip(indices, values, strict=True)]
            row = {"index": index, "image": source.where(index), "class": probable[0][0], "truth": classes[label]}
            rows.append(row | {"probable": probable, "right": indices[0] == label, "among_first": label in indices})
    counter.check()
    n = len(rows)
    metrics = {
        "images": float(n),
        "skipped": float(counter.num_skipped),
        "accuracy": sum(row["right"] for row in rows) / n,
    }
    metrics |= {f"accuracy at {k}": sum(row["among_first"] for row in rows) / n, "chance": 1 / len(classes)}

    def example(row: dict[str, Any]) -> AnswerExample:
        image, right = source.image(row["index"]), float(row["right"])
        return AnswerExample(image, "what is this?", row["probable"][:3], row["truth"], right)

    chosen = evenly_spaced(rows, MAX_EXAMPLES)
    return Result(metrics, rows, lambda: draw_examples(chosen, example), list(counter.skipped.values()))
