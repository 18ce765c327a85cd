"""Parts that the training steps and evaluations of downstream tasks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from diptych.batch import Batch
from diptych.config.run import Finetune
from diptych.config.tasks import Evaluation
from diptych.data.examples import Examples
from diptych.data.loader import SkipCounter, evaluation_loader
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.modules.tokens import Tokens
from diptych.protocols import ImageEncoder, RegionEncoder

Part = TypeVar("Part")
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


def evaluation_batches(
    loaded: LoadedModel, examples: Examples, batch_size: int, workers: int, counter: SkipCounter, description: str
) -> Iterator[Batch]:
    """Batches of every readable example on the model's device, with a progress bar; `counter` counts the others.

    `workers`: processes that load. `description`: the label of the progress bar.
    """
    batches = evaluation_loader(examples, batch_size, workers=workers)
    for part in track(batches, description=description, total=-(-len(examples) // batch_size)):
        counter.add(len(part.batch), part.skipped)
        yield part.batch.to(loaded.device)


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

    Args:
        config: the evaluation's settings.
        rows_of: from a batch to the row of each of its examples: JSON values only.

    Raises:
        DataError: too many examples cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for batch in evaluation_batches(loaded, examples, batch_size, config.workers, counter, description):
        rows += rows_of(batch)
    counter.check()
    return rows


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
