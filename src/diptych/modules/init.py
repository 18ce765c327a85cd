"""How untrained weights are drawn."""

from __future__ import annotations

import torch
from torch import nn

from diptych.modules.attention import SelfAttention


def init_transformer(module: nn.Module, std: float = 0.02) -> None:
    """BERT's and ViT's rule, for `Module.apply`: truncated normal weights, zero biases, identity LayerNorm.

    Parameters that belong to no layer (class tokens, position grids) are drawn by their owner. Differs: new heads are drawn so
    too, where some official codes (ALBEF, BLIP) leave theirs to torch's own rule.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=std)
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_blocks(blocks: nn.ModuleList, dim: int) -> None:
    """CLIP's rule for pre-norm blocks, after GPT-2's: what is added back to the tokens is drawn smaller the deeper the
    transformer is (official code, `initialize_parameters`). Biases are zero.
    """
    added = dim**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        attention, feedforward = block.get_submodule("attention"), block.get_submodule("feedforward")
        asks = ("qkv",) if isinstance(attention, SelfAttention) else ("query", "key", "value")
        drawn = [(attention, part, dim**-0.5) for part in asks] + [(attention, "out", added)]
        drawn += [(feedforward, "grow", (2 * dim) ** -0.5), (feedforward, "shrink", added)]
        for module, part, std in drawn:
            layer = module.get_submodule(part)
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def scale_init(module: nn.Module, factor: float) -> None:
    """Multiplies the weights of all linear layers, each once: 0.02 suits 768 channels, and fewer need more."""
    for weight in {part.weight for part in module.modules() if isinstance(part, nn.Linear)}:
        weight.mul_(factor)
