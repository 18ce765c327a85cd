"""A pre-training run's own losses and metrics over a whole split, with its ITM accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from diptych.objectives.itm import ITMLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, TrainStep
from diptych.runs.build import build
from diptych.runs.run_folder import RUN_FILE, check_same_model, read_run
from diptych.runs.train import Sums, add_sums, batch_sums, ratios
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
    was trained on. An imported one has only this accuracy: the settings of its losses are not among its weights.

    Raises:
        DataError: the data cannot be read.
        RunError: the model is not one of pre-training, or was imported and has no ITM head.
    """
    steps = _steps(loaded)
    source = open_gallery(config, loaded.image_settings.shorter_side)
    examples = PairExamples(source, loaded.tokenizer, loaded.image_input)
    counter = SkipCounter(config.max_skipped)
    precision = "bf16" if uses_bf16(loaded.device, config.precision, loaded.module) else "fp32"
    combined = CombinedSteps(steps)

    def sums_of(number: int, batch: Batch) -> Sums:
        return batch_sums(combined, batch, loaded.device, precision)

    shuffled = Shuffled(examples, config.seed)
    parts = evaluation_values(loaded, shuffled, config, BATCH, counter, "matching", sums_of, seed=config.seed + 1)
    means = ratios(*add_sums(sums for _, sums in parts))
    counts = {
        "pairs": len(examples) - counter.num_skipped,
        "images": len(examples.source),
        "skipped": counter.num_skipped,
    }
    return Result(means | counts, skipped=list(counter.skipped.values()))


def _steps(loaded: LoadedModel) -> list[TrainStep]:
    """The training step of a run's own losses, and that of its ITM accuracy. Raises RunError."""
    if loaded.saved.task != "pretraining":
        raise RunError("matching needs a pre-training run")
    steps: list[TrainStep] = []
    if loaded.folder is not None and (loaded.folder / RUN_FILE).is_file():
        steps.append(_trained_step(loaded, loaded.folder))
    if "itm" in loaded.losses:
        steps.append(MatchingAccuracy(loaded))
    if not steps:
        others = " or ".join(name for name, task in tasks().items() if not task.lacks(loaded))
        advice = f": give --task {others}" if others else ""
        raise RunError(f"matching needs a run of `diptych pretrain`, or an imported model with an ITM head{advice}")
    return steps


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
    """A step without a loss: the ITM accuracy on pairs of which half match."""

    def __init__(self, loaded: LoadedModel):
        self.model, self.heads, self.objective = loaded.model, loaded.heads, ITMLoss()
        self.weights: dict[str, float] = {}
        self.chance_losses: dict[str, ChanceLoss] = {}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.num_terms(self._views(batch))["itm/accuracy"]}

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.loss_sums(self._views(batch))["itm/accuracy"] / counts[ACCURACY]}

    def _views(self, batch: Batch) -> Views:
        return Views(self.model, self.heads, batch, KeyedChoices(batch))


class CombinedSteps:
    """Several steps evaluated as one; their losses and metrics must have distinct names."""

    def __init__(self, steps: Sequence[TrainStep]):
        self.steps = steps
        self.weights: dict[str, float] = {}
        self.chance_losses: dict[str, ChanceLoss] = {}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return {name: count for step in self.steps for name, count in step.num_terms(batch).items()}

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: mean for step in self.steps for name, mean in step(batch, counts).items()}
