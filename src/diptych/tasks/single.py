"""What the downstream steps share: one loss, averaged over the samples of the global batch."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.tokens import Batch


def sample_counts(batch: Batch, *names: str) -> dict[str, Tensor]:
    """Counts of losses and metrics that have one term per sample."""
    n = torch.tensor(float(len(batch)), device=batch.ids.device)
    return dict.fromkeys(names, n)


def need[T](part: T | None, what: str) -> T:
    """A part of a batch that this step cannot do without. Raises ValueError."""
    if part is None:
        raise ValueError(f"this batch has no {what}")
    return part
