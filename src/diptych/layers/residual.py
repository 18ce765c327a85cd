"""What a block does with a branch before it adds it back."""

from __future__ import annotations

import torch
from torch import nn

from diptych.tokens import Tokens


class Residual(nn.Module):
    """A branch of a block, added back to the tokens that it read.

    `scale`: each channel of the branch has a learned factor, which begins there (LayerScale: Touvron et al., ICCV 2021,
    section 2); None: no factor. `drop`: while training, the share of samples that go without the branch; it is scaled up
    in the others (stochastic depth: Huang et al., ECCV 2016).
    """

    def __init__(self, width: int, scale: float | None = None, drop: float = 0.0):
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.drop = drop

    def forward(self, tokens: Tokens, branch: Tokens) -> Tokens:
        if self.scale is not None:
            branch = branch.map(self.scale.mul)
        if self.training and self.drop:
            keep = torch.rand(len(tokens), device=branch.values.device) >= self.drop
            branch = branch.scale(keep.to(branch.values.dtype) / (1 - self.drop))
        return tokens + branch
