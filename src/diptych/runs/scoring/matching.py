"""A pre-training run's own losses and metrics over a whole split, with its ITM accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.progress import track
from torch import Tensor

from diptych.batch import Batch
from diptych.config import tasks as settings
from diptych.data.examples import PairExamples
from diptych.data.loader import Shuffled, SkipCounter, evaluation_loader
from diptych.objectives.itm import ITMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import ChanceLoss, TrainStep
from diptych.runs.loaded_model import LoadedModel
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import Result
from diptych.runs.scoring.gallery import open_gallery
from diptych.runs.train import ratios, sums

BATCH = 64
ACCURACY = "matching accuracy"


def matching(loaded: LoadedModel, config: settings.Matching) -> Result:
    """The mean of each loss and metric over the split, half of the images replaced by others.

    A run trained with ITM also has its accuracy on these pairs: the same pairs for every run, whatever negatives it was
    trained on.

    Raises:
        DataError: the data cannot be read.
        RunError: the run is not a pre-training run.
    """
    module = loaded.module
    if not isinstance(module, Pretraining):
        raise RunError("matching needs a pre-training run")
    source = open_gallery(config, loaded.image_settings.shorter_side)
    examples = PairExamples(source, loaded.tokenizer, loaded.image_input)
    counter = SkipCounter(config.max_skipped)

    def batches() -> Iterator[Batch]:
        loader = evaluation_loader(Shuffled(examples, config.seed), BATCH, seed=config.seed + 1, workers=config.workers)
        for part in track(loader, description="matching", total=-(-len(examples) // BATCH)):
            counter.add(len(part.batch), part.skipped)
            yield part.batch

    steps: tuple[TrainStep, ...] = (module, MatchingAccuracy(module)) if "itm" in module.weights else (module,)
    means = ratios(*sums(CombinedSteps(steps), batches(), loaded.device, config.precision))
    counter.check()
    counts = {
        "pairs": len(examples) - counter.num_skipped,
        "images": len(examples.source),
        "skipped": counter.num_skipped,
    }
    return Result(means | counts, skipped=list(counter.skipped.values()))


class MatchingAccuracy:
    """A step without a loss: the ITM accuracy on pairs of which half match."""

    def __init__(self, step: Pretraining):
        self.step, self.objective = step, ITMLoss()
        self.weights: dict[str, float] = {}
        self.chance_losses: dict[str, ChanceLoss] = {}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.num_terms(self.step.views(batch))["itm/accuracy"]}

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.loss_sums(self.step.views(batch))["itm/accuracy"] / counts[ACCURACY]}


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
