"""What the downstream steps share: one loss, averaged over the samples of the global batch."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diptych.batch import Batch
from diptych.modules.tokens import Tokens
from diptych.protocols import ImageEncoder

Part = TypeVar("Part")


def sample_counts(batch: Batch, *names: str) -> dict[str, Tensor]:
    """Counts of losses and metrics that have one term per sample."""
    n = torch.tensor(float(len(batch)), device=batch.ids.device)
    return dict.fromkeys(names, n)


def required(part: Part | None, what: str) -> Part:
    """A part of a batch that this step cannot do without. Raises ValueError."""
    if part is None:
        raise ValueError(f"this batch has no {what}")
    return part


def encode_images(model: ImageEncoder, batch: Batch) -> Tokens:
    """The batch's images as tokens: of their pixels, or of the regions that stand in their place."""
    if batch.image is None and batch.regions is not None:
        return model.encode_image(batch.regions)  # type: ignore[arg-type]  # such a batch is for a model of regions
    return model.encode_image(required(batch.image, "image"))


@runtime_checkable
class Loss(Protocol):
    """Of logits (b, c) and classes (b,); with reduction "sum" the sum over samples."""

    def __call__(self, input: Tensor, target: Tensor, *, reduction: str) -> Tensor: ...


def binary_cross_entropy(
    input: Float[Tensor, "b c"], target: Int[Tensor, " b"], *, reduction: str = "mean"
) -> Float[Tensor, "*b"]:
    """Yes or no to each class by itself, averaged over classes: what ViLBERT's code trains NLVR2 and entailment by."""
    each = F.binary_cross_entropy_with_logits(
        input, F.one_hot(target, input.shape[1]).to(input.dtype), reduction="none"
    )
    return {"mean": torch.mean, "sum": torch.sum}[reduction](each.mean(1))
