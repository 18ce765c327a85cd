"""The mean of all that was seen."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RunningMean(nn.Module):
    """Of the rows that it was shown, batch after batch: state that checkpoints, and is the same on every rank where all are
    shown the batch of all.
    """

    mean: Float[Tensor, " width"]
    rows: Float[Tensor, ""]

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("rows", torch.tensor(0.0))

    @torch.no_grad()
    def learn(self, total: Float[Tensor, " width"], rows: Float[Tensor, ""]) -> None:
        """The sum of a batch's rows, and how many they are."""
        self.rows.add_(rows)
        self.mean.add_((total - rows * self.mean) / self.rows.clamp(min=1))
