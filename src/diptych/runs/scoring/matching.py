"""A pre-training run's own losses and accuracies over a whole split, and how well it matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.progress import track
from torch import Tensor

from diptych.batch import Batch
from diptych.data.examples import PairExamples
from diptych.data.loader import Shuffled, Tally, sweep
from diptych.objectives.itm import ImageTextMatching
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import Floor, Step
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import Scored, Subject
from diptych.runs.scoring.gallery import open_gallery
from diptych.runs.tokenizer import tokenizer_of
from diptych.runs.train import ratios, sums

BATCH = 64
ACCURACY = "matching accuracy"


def matching(subject: Subject) -> Scored:
    """Each loss and metric averaged over the split, half of the pictures replaced. Where the run learned to match, its
    accuracy on those: the same question for all, whatever they were told from in training. Raises DataError, RunError.
    """
    run, asked, module = subject.run, subject.asked, subject.module
    if not isinstance(module, Pretraining):
        raise RunError("matching needs a pre-training run")
    food = PairExamples(open_gallery(asked, subject.images.shorter), tokenizer_of(run), subject.shows)
    tally = Tally(asked.max_skipped)

    def batches() -> Iterator[Batch]:
        loading = sweep(Shuffled(food, asked.seed), BATCH, seed=asked.seed + 1, workers=asked.workers)
        for loaded in track(loading, description="matching", total=-(-len(food) // BATCH)):
            tally.add(len(loaded.batch), loaded.skipped)
            yield loaded.batch

    steps: tuple[Step, ...] = (module, Matches(module)) if "itm" in module.weights else (module,)
    means = ratios(*sums(Both(steps), batches(), subject.device, asked.precision))
    tally.check()
    counts = {"pairs": len(food) - tally.bad, "images": len(food.source), "skipped": tally.bad}
    return Scored(means | counts, skipped=list(tally.listed.values()))


class Matches:
    """As a step: how often a run is right about pairs of which half are true."""

    def __init__(self, step: Pretraining):
        self.step, self.objective = step, ImageTextMatching()
        self.weights: dict[str, float] = {}
        self.floors: dict[str, Floor] = {}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.counts(self.step.views(batch))["itm/accuracy"]}

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {ACCURACY: self.objective.totals(self.step.views(batch))["itm/accuracy"] / counts[ACCURACY]}


class Both:
    """Several steps as one, each of which names its losses otherwise."""

    def __init__(self, steps: Sequence[Step]):
        self.steps = steps
        self.weights: dict[str, float] = {}
        self.floors: dict[str, Floor] = {}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {name: count for step in self.steps for name, count in step.counts(batch).items()}

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: mean for step in self.steps for name, mean in step(batch, counts).items()}
