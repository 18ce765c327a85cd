"""Parts that the training steps of downstream tasks share."""

from __future__ import annotations

from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diptych.batch import Batch
from diptych.modules.tokens import Tokens
from diptych.protocols import ImageEncoder, RegionEncoder

Part = TypeVar("Part")


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
