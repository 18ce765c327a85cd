"""A pre-training run's own losses and metrics over a whole split, with its ITM accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from diptych.batch import Batch
from diptych.checkpoints.strict import load_strict
from diptych.config import tasks as settings
from diptych.config.run import Pretrain
from diptych.data.examples import PairExamples
from diptych.data.loader import Shuffled, SkipCounter
from diptych.inference.folder import check_module
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.metrics.bootstrap import means, means_of_rows
from diptych.objectives.itm import ITMLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import TrainStep
from diptych.runs.build import build
from diptych.runs.run_folder import RUN_FILE, check_same_model, read_run
from diptych.runs.train import add_sums, batch_sums, ratios
from diptych.tasks.common import evaluation_values
from diptych.tasks.definition import Result, tasks
from diptych.tasks.gallery import open_gallery
from diptych.training.distributed import uses_bf16
from diptych.utils.state_dict import named_weights

BATCH = 64  # pairs at once
ACCURACY = "matching accuracy"


def matching(loaded: LoadedModel, config: settings.Matching) -> Result:
    """The mean of each loss and metric over the split, half of the images replaced by others.

    A model trained with ITM also has its accuracy on these pairs: the same pairs for every model, whatever negatives it
    was trained on. An imported one has only this accuracy: the settings of its losses are not among its weights. The
    accuracy has a confidence interval; a loss that compares the samples of a batch is no mean over photographs, and
    has none.

    Raises:
        DataError: the data cannot be read.
        RunError: the model is not one of pre-training, or was imported and has no ITM head.
    """
    step, accuracy = _step(loaded)
    source = open_gallery(config, loaded.image_settings.shorter_side)
    examples = PairExamples(source, loaded.tokenizer, loaded.image_input)
    counter = SkipCounter(config.max_skipped)
    precision = "bf16" if uses_bf16(loaded.device, config.precision, loaded.module) else "fp32"

    def compute(number: int, batch: Batch) -> dict[str, Any]:
        hits = [] if accuracy is None else accuracy.hits(batch).tolist()
        sums = {} if step is None else batch_sums(step, batch, loaded.device, precision)
        return {"sums": sums, "image": [int(examples.owner[i]) for i in batch.ids.tolist()], "hits": hits}

    shuffled = Shuffled(examples, config.seed)
    computed = evaluation_values(loaded, shuffled, config, BATCH, counter, "matching", compute, seed=config.seed + 1)
    parts = [part for _, part in computed]
    hits = {ACCURACY: [float(hit) for part in parts for hit in part["hits"]]} if accuracy else {}
    photographs = [image for part in parts for image in part["image"]]
    counts = {
        "pairs": len(examples) - counter.num_skipped,
        "images": len(examples.source),
        "skipped": counter.num_skipped,
    }
    metrics = ratios(*add_sums(part["sums"] for part in parts)) | means(hits) | counts
    resampled = means_of_rows(photographs, hits) if hits else None
    return Result(metrics, skipped=list(counter.skipped.values()), resampled=resampled)


def _step(loaded: LoadedModel) -> tuple[TrainStep | None, MatchingAccuracy | None]:
    """The training step of a run's own losses, and its ITM accuracy; None for what it lacks. Raises RunError."""
    if loaded.saved.task != "pretraining":
        raise RunError("matching needs a pre-training run")
    trained = loaded.folder is not None and (loaded.folder / RUN_FILE).is_file()
    if not trained and "itm" not in loaded.losses:
        others = " or ".join(name for name, task in tasks().items() if not task.lacks(loaded))
        advice = f": give --task {others}" if others else ""
        raise RunError(f"matching needs a run of `diptych pretrain`, or an imported model with an ITM head{advice}")
    step = _trained_step(loaded, loaded.folder) if trained and loaded.folder is not None else None
    return step, MatchingAccuracy(loaded) if "itm" in loaded.losses else None


def _trained_step(loaded: LoadedModel, folder: Path) -> TrainStep:
    """The training step that run.json describes, with the weights of the model. Raises RunError, WeightsError."""
    run, _ = read_run(folder)
    check_same_model(folder, loaded.saved, run, loaded.saved.heads, loaded.saved.labels)
    assert isinstance(run, Pretrain)  # as config.json's task is pre-training
    check_module(folder, lambda: build(run, guided=False))
    step = build(run)
    load_strict(step, named_weights(loaded.module), str(folder))
    return step.to(loaded.device).eval()


class MatchingAccuracy:
    """The ITM accuracy on pairs of which half match."""

    def __init__(self, loaded: LoadedModel):
        self.model, self.heads, self.objective = loaded.model, loaded.heads, ITMLoss()

    def hits(self, batch: Batch) -> Bool[Tensor, " b"]:
        """Whether the head is right about each pair."""
        views = Views(self.model, self.heads, batch, KeyedChoices(batch))
        return self.objective.logits(views).float().argmax(1) == views.matching.matched
