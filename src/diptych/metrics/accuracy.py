"""How often a classifier is right."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def top1(scores: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The share of rows whose highest score is the label's, in [0, 1]. Raises ValueError for no rows or NaN."""
    _some(scores)
    return (scores.argmax(1) == labels).double().mean().item()


def binary(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"], threshold: float = 0.0) -> float:
    """The share of scores that lie above `threshold` exactly where the label is True, in [0, 1].

    The default suits logits. Raises ValueError for no scores or NaN.
    """
    _some(scores)
    return ((scores > threshold) == labels).double().mean().item()


def _some(scores: Tensor) -> None:
    if scores.numel() == 0 or bool(scores.isnan().any()):
        raise ValueError(f"scores {tuple(scores.shape)} are empty or hold NaN: there is nothing to measure")
