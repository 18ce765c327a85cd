"""Targets that a teacher softens: what a momentum model says is mixed into what the data say (ALBEF, section 3.3)."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Soft(NamedTuple):
    """A teacher's logits, believed to the share `alpha`."""

    logits: Float[Tensor, "*n classes"]
    alpha: float


def soft_cross_entropy(
    logits: Float[Tensor, "*n classes"], targets: Float[Tensor, "*n classes"]
) -> Float[Tensor, "*n"]:
    """Cross entropy with a distribution for each row."""
    return -(logits.float().log_softmax(-1) * targets).sum(-1)


def softened(hard: Float[Tensor, ""], logits: Float[Tensor, "n classes"], soft: Soft | None) -> Float[Tensor, ""]:
    """(1 − α) · the sum of losses by the labels + α · that by what the teacher says (ALBEF, eq. 7); `hard` without one."""
    if soft is None:
        return hard
    taught = soft_cross_entropy(logits, soft.logits.detach().float().softmax(-1)).sum()
    return (1 - soft.alpha) * hard + soft.alpha * taught
