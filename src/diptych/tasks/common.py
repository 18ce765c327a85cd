"""Parts that the training steps and evaluations of downstream tasks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diptych.batch import Batch
from diptych.config.run import Finetune
from diptych.config.tasks import Evaluation
from diptych.data.examples import Examples
from diptych.data.loader import SkipCounter, none_usable, num_batches, numbered_batches
from diptych.data.sources.base import Skipped
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.modules.tokens import Tokens
from diptych.protocols import ImageEncoder, RegionEncoder
from diptych.tasks.session import current_session

Part = TypeVar("Part")
T = TypeVar("T")
Options = TypeVar("Options")


def sample_counts(batch: Batch, *names: str) -> dict[str, Tensor]:
    """The number of terms, one per sample, of each of the losses and metrics `names`."""
    n = torch.tensor(float(len(batch)), device=batch.ids.device)
    return dict.fromkeys(names, n)


def required(part: Part | None, what: str) -> Part:
    """The `part` of a batch, which must not be None. Raises ValueError, which calls it `what`."""
    if part is None:
        raise ValueError(f"this batch has no {what}")
    return part


def encode_images(model: ImageEncoder, batch: Batch) -> Tokens:
    """Image tokens of a batch, from its pixels or, for models of region features, from its regions."""
    if batch.image is None and batch.regions is not None:
        return cast(RegionEncoder, model).encode_image(batch.regions)
    return model.encode_image(required(batch.image, "image"))


def encode_texts(loaded: LoadedModel, texts: list[str], batch_size: int) -> Iterator[Tokens]:
    """Text tokens of `batch_size` texts at a time."""
    tokenizer = loaded.tokenizer
    for start in range(0, len(texts), batch_size):
        text = tokenizer.encode(texts[start : start + batch_size]).to(loaded.device)
        yield loaded.model.encode_text(text)


def evaluation_values(
    loaded: LoadedModel,
    examples: Examples,
    config: Evaluation,
    batch_size: int,
    counter: SkipCounter,
    description: str,
    compute: Callable[[int, Batch], T],
    *,
    seed: int = 0,
    record: bool = True,
) -> list[tuple[int, T]]:
    """What `compute` makes of each batch that has a readable example, with the batch's number, in order.

    See `Session.values` for what ranks share, what is recorded and what is shown; `counter` counts the examples.

    Args:
        compute: from the number of a batch and the batch, on the model's device, to its value.
        seed: of the examples' random draws.
        record: the values are JSON values, and continue an interrupted evaluation.

    Raises:
        DataError: too many examples, or all, cannot be read.
    """

    def values(numbers: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        own = SkipCounter(counter.limit)
        parts = numbered_batches(examples, batch_size, numbers, seed=seed, workers=config.workers)
        for number, batch, skipped in parts:
            size = 0 if batch is None else len(batch)
            own.add(size, skipped)  # stops early
            value = None if batch is None else compute(number, batch.to(loaded.device))
            yield number, {"samples": size, "value": value, "skipped": [asdict(sample) for sample in skipped]}

    numbers, size = range(num_batches(len(examples), batch_size)), (len(examples), batch_size)
    parts = current_session().values(description, numbers, values, size, record)
    all_skipped = [[Skipped(**sample) for sample in part["skipped"]] for part in parts]
    for part, skipped in zip(parts, all_skipped, strict=True):
        counter.add(part["samples"], skipped)
    if all_skipped and not any(part["samples"] for part in parts):
        raise none_usable([sample for skipped in all_skipped for sample in skipped])
    counter.check()
    return [(number, part["value"]) for number, part in enumerate(parts) if part["samples"]]


def evaluation_rows(
    loaded: LoadedModel,
    examples: Examples,
    config: Evaluation,
    batch_size: int,
    counter: SkipCounter,
    description: str,
    rows_of: Callable[[Batch], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The row of each readable example in order, with a progress bar; `counter` counts the others.

    Batches are divided over the ranks, and the rows of those that an interrupted evaluation has computed are read from
    its file (see `session`); the rows are the same for any number of ranks and interruptions.

    Args:
        config: the evaluation's settings.
        description: the label of the progress bar; another for each call in one evaluation.
        rows_of: from a batch to the row of each of its examples: JSON values only (tuples become lists).

    Raises:
        DataError: too many examples, or all, cannot be read.
    """
    parts = evaluation_values(
        loaded, examples, config, batch_size, counter, description, lambda number, batch: rows_of(batch)
    )
    return [row for _, rows in parts for row in rows]


def options_of(run: Finetune, options: type[Options]) -> Options:
    """A run's settings of fine-tuning, of the class `options`. Raises RunError if they are those of another task."""
    if not isinstance(run.options, options):
        raise RunError(f"options: expected {options.__name__}, got {type(run.options).__name__}")
    return run.options


@runtime_checkable
class Loss(Protocol):
    """A loss of logits (b, c) and class indices (b,); `reduction` "sum" sums it over samples."""

    def __call__(self, input: Tensor, target: Tensor, *, reduction: str) -> Tensor: ...


def binary_cross_entropy(
    input: Float[Tensor, "b c"], target: Int[Tensor, " b"], *, reduction: str = "mean"
) -> Float[Tensor, "*b"]:
    """Binary cross entropy of each class against all others, averaged over classes; ``reduction`` is over samples.

    Source: ViLBERT's official code, for NLVR2 and entailment.
    """
    losses = F.binary_cross_entropy_with_logits(
        input, F.one_hot(target, input.shape[1]).to(input.dtype), reduction="none"
    )
    return {"mean": torch.mean, "sum": torch.sum}[reduction](losses.mean(1))
