"""Training data of a run: examples in random access, or a stream of tars that is too large to index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from diptych.config.run import TrainingRun
from diptych.config.training import Training
from diptych.data.examples import Examples
from diptych.data.loader import Loaded, rate, training_loader
from diptych.data.webdataset.stream_loader import Make, stream_loader
from diptych.data.webdataset.streamed_shards import Stream
from diptych.inference.saved_model import RunError
from diptych.training.distributed import Group

R = TypeVar("R", bound=TrainingRun)


@dataclass(frozen=True)
class StreamedData:
    """A stream of tars.

    Args:
        stream: the tars and the lanes that read them.
        make: makes examples of a tar's samples.
        head: examples of the first tar, in random access: statistics and loading speed are measured on them.
        min_side: shorter side in pixels down to which JPEGs may be decoded at a reduced scale; None: in full.
    """

    stream: Stream
    make: Make
    head: Examples
    min_side: int | None = None


TrainingData = Examples | StreamedData


def with_steps(run: R, data: TrainingData) -> R:
    """The run with its steps set from its epochs and the number of examples (`Training.for_examples`).

    Raises RunError if it counts by epochs and its data are a stream, whose number of examples is not known.
    """
    if not run.training.needs_epochs:
        return run
    if isinstance(data, StreamedData):
        raise RunError(
            "epochs are counted by the number of examples, which is not known of a stream of tars: set epochs, "
            "evaluate_epochs and optimizer.rate_per_epoch to 0, 0 and False, and give --steps"
        )
    return replace(run, training=run.training.for_examples(len(data)))


def batches(
    data: TrainingData, settings: Training, group: Group, first: int, cursor: Mapping[str, Sequence[int]]
) -> Iterator[list[Loaded]]:
    """Micro-batches of this rank, a list for each step.

    Args:
        first: step to start at.
        cursor: position of a stream's lanes as the checkpoint recorded it.
    """
    if isinstance(data, StreamedData):
        return stream_loader(
            data.stream,
            data.make,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start=first,
            steps=settings.steps,
            rank=group.rank,
            world=group.world,
            grad_accum=settings.grad_accum,
            workers=settings.workers,
            cursor=cursor,
            min_side=data.min_side,
        )
    return training_loader(
        data,
        batch_size=settings.batch_size,
        seed=settings.seed,
        start=first,
        steps=settings.steps,
        rank=group.rank,
        world=group.world,
        grad_accum=settings.grad_accum,
        workers=settings.workers,
    )


def data_size(data: TrainingData) -> int:
    """Number of examples; for a stream, number of tars."""
    return len(data.stream.shards) if isinstance(data, StreamedData) else len(data)


def describe_data(data: TrainingData, name: str, split: str, workers: int) -> str:
    """Amount of data, its name and its loading speed, for the log line at the start."""
    head = data.head if isinstance(data, StreamedData) else data
    speed = rate(head, workers=workers, samples=32)
    if isinstance(data, StreamedData):
        return f"{data_size(data):,} tars of {name} ({split}) in {data.stream.settings.lanes} lanes, loading {speed}"
    return f"{data_size(data):,} examples of {name} ({split}), loading {speed}"
