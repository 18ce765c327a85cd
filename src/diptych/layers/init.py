"""How untrained weights are drawn."""

from __future__ import annotations

from torch import nn


def init_transformer(module: nn.Module, std: float = 0.02) -> None:
    """BERT's and ViT's rule, for `Module.apply`: truncated normal weights, zero biases, identity LayerNorm.

    Parameters that belong to no layer (class tokens, position grids) are drawn by their owner.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=std)
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
