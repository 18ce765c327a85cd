"""A pre-training run's own losses and accuracies over a whole split."""

from __future__ import annotations

from collections.abc import Iterator

from rich.progress import track

from diptych.data.examples import PairExamples
from diptych.data.loader import sweep
from diptych.data.tally import Tally
from diptych.inputs import Batch
from diptych.jobs.folder import RunError
from diptych.jobs.reading import tokenizer_of
from diptych.jobs.scores import Scored, Subject
from diptych.jobs.scores.gallery import open_gallery
from diptych.jobs.training import ratios, sums
from diptych.objectives.pretraining import Pretraining

BATCH = 64


def matching(subject: Subject) -> Scored:
    """Each loss and metric averaged over the split, half of the pictures replaced. Raises DataError, RunError."""
    run, asked, module = subject.run, subject.asked, subject.module
    if not isinstance(module, Pretraining):
        raise RunError("matching needs a pre-training run")
    food = PairExamples(open_gallery(asked, subject.images.shorter), tokenizer_of(run), subject.images)
    tally = Tally(asked.max_skipped)

    def batches() -> Iterator[Batch]:
        loading = sweep(food, BATCH, seed=asked.seed + 1, workers=asked.workers)
        for loaded in track(loading, description="matching", total=-(-len(food) // BATCH)):
            tally.add(len(loaded.batch), loaded.skipped)
            yield loaded.batch

    means = ratios(*sums(module, batches(), subject.device, asked.precision))
    tally.check()
    counts = {"pairs": len(food) - tally.bad, "images": len(food.source), "skipped": tally.bad}
    return Scored(means | counts, skipped=list(tally.listed.values()))
