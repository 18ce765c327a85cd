"""What a training job learns from: examples in any order, or a stream of tars too many to index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.config.training import Training
from diptych.data.examples import Examples
from diptych.data.loader import Loaded, rate, training_loader
from diptych.data.webdataset.stream import Stream
from diptych.data.webdataset.stream_loader import Make, stream_loader
from diptych.training.distributed import Group
from diptych.utils.terminal import echo


@dataclass(frozen=True)
class Streamed:
    """A stream, how its samples become examples, and those of its first tar, in any order: what is counted and timed."""

    stream: Stream
    make: Make
    head: Examples
    least: int | None = None


TrainingData = Examples | Streamed


def batches(
    food: TrainingData, settings: Training, group: Group, first: int, cursor: Mapping[str, Sequence[int]]
) -> Iterator[list[Loaded]]:
    """This rank's micro-batches from step `first` on; `cursor`: where a stream stood when the checkpoint was written."""
    if isinstance(food, Streamed):
        return stream_loader(
            food.stream, food.make, batch_size=settings.batch_size, seed=settings.seed, start=first, steps=settings.steps,
            rank=group.rank, world=group.world, grad_accum=settings.grad_accum, workers=settings.workers, cursor=cursor,
            least=food.least,
        )  # fmt: skip
    return training_loader(
        food, batch_size=settings.batch_size, seed=settings.seed, start=first, steps=settings.steps,
        rank=group.rank, world=group.world, grad_accum=settings.grad_accum, workers=settings.workers,
    )  # fmt: skip


def size_text(food: TrainingData) -> int:
    """How many examples there are; of a stream, how many tars."""
    return len(food.stream.shards) if isinstance(food, Streamed) else len(food)


def division_of(given: Any) -> str:
    """How the data behind a source, or behind examples of one, was divided into splits, in a line; "" where nothing was."""
    while not hasattr(given, "division"):
        given = getattr(given, "pairs", None) or getattr(given, "source", None)
        if given is None:
            return ""
    return given.division


def say_division(given: Any, but: str = "") -> None:
    """Prints `division_of`, unless it is that line."""
    if (said := division_of(given)) and said != but:
        echo(said)


def describe_data(food: TrainingData, data: str, split: str, workers: int) -> str:
    """How much there is of what, and how fast it comes."""
    head = food.head if isinstance(food, Streamed) else food
    fast = rate(head, workers=workers, samples=32)
    if isinstance(food, Streamed):
        return f"{size_text(food):,} tars of {data} ({split}) in {food.stream.settings.lanes} lanes at {fast}"
    return f"{size_text(food):,} examples of {data} ({split}) at {fast}"
