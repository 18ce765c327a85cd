"""What the downstream steps share: one loss, averaged over the samples of the global batch."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from diptych.inputs import Batch

Part = TypeVar("Part")


def sample_counts(batch: Batch, *names: str) -> dict[str, Tensor]:
    """Counts of losses and metrics that have one term per sample."""
    n = torch.tensor(float(len(batch)), device=batch.ids.device)
    return dict.fromkeys(names, n)


def need(part: Part | None, what: str) -> Part:
    """A part of a batch that this step cannot do without. Raises ValueError."""
    if part is None:
        raise ValueError(f"this batch has no {what}")
    return part
