"""A pre-training run's own losses and accuracies over a whole split, and how well it matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.progress import track
from torch import Tensor

from diptych.batch import Batch
from diptych.data.examples import PairExamples
from diptych.data.loader import Shuffled, SkipCounter, evaluation_loader
from diptych.objectives.itm import ITM
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import ChanceLoss, TrainStep
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import EvaluatedModel, Result
from diptych.runs.scoring.gallery import open_gallery
from diptych.runs.tokenizer import tokenizer_of
from diptych.runs.train import ratios, sums

BATCH = 64
ACCURACY = "matching accuracy"


def matching(subject: EvaluatedModel) -> Result:
    """Each loss and metric averaged over the split, half of the pictures replaced. Where the run learned to match, its
    accuracy on those: the same question for all, whatever they were told from in training. Raises DataError, RunError.
    """
    run, asked, module = subject.run, subject.asked, subject.module
    if not isinstance(module, Pretraining):
        raise RunError("matching needs a pre-training run")
    food = PairExamples(open_gallery(asked, subject.images.shorter_side), tokenizer_of(run), subject.shows)
    tally = SkipCounter(asked.max_skipped)

    def batches() -> Iterator[Batch]:
        loading = evaluation_loader(Shuffled(food, asked.seed), BATCH, seed=asked.seed + 1, workers=asked.workers)
        for loaded in track(loading, description="matching", total=-(-len(food) // BATCH)):
            tally.add(len(loaded.batch), loaded.skipped)
            yield loaded.batch

    steps: tuple[TrainStep, ...] = (module, Matches(module)) if "itm" in module.weights else (module,)
    means = ratios(*sums(Both(steps), batches(), subject.device, asked.precision))
    tally.check()
    counts = {"pairs": len(food) - tally.bad, "images": len(food.source), "skipped": tally.bad}
    return Result(means | counts, skipped=list(tally.listed.values()))


class Matches:
    """As a step: how often a run is right about pairs of which half are true."""

    def __init__(self, step: Pretraining):
        self.step, self.objective = step, ITM()
        self.weights: dict[str, float] = {}
        self.chance_losses: dict[str, ChanceLoss] = {}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.num_terms(self.step.views(batch))["itm/accuracy"]}

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.loss_sums(self.step.views(batch))["itm/accuracy"] / counts[ACCURACY]}


class Both:
    """Several steps as one, each of which names its losses otherwise."""

    def __init__(self, steps: Sequence[TrainStep]):
        self.steps = steps
        self.weights: dict[str, float] = {}
        self.chance_losses: dict[str, ChanceLoss] = {}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return {name: count for step in self.steps for name, count in step.num_terms(batch).items()}

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: mean for step in self.steps for name, mean in step(batch, counts).items()}
