"""Targets that a teacher softens: what a momentum model says is mixed into what the data say (ALBEF, section 3.3)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def soft_cross_entropy(logits: Float[Tensor, "n classes"], targets: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """Cross entropy with a distribution for each row."""
    return -(logits.float().log_softmax(-1) * targets).sum(-1)


def taught_cross_entropy(
    logits: Float[Tensor, "n classes"],
    labels: Int[Tensor, " n"],
    teacher: Float[Tensor, "n classes"] | None = None,
    alpha: float = 0.0,
    smoothing: float = 0.0,
) -> Float[Tensor, " n"]:
    """(1 − α) · cross entropy with the labels + α · cross entropy with what the `teacher`'s logits say (ALBEF, eq. 7).

    Without a teacher the labels alone. `smoothing`: the labels' share that is spread over all classes.
    """
    hard = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
    if teacher is None:
        return hard
    return (1 - alpha) * hard + alpha * soft_cross_entropy(logits, teacher.detach().float().softmax(-1))
