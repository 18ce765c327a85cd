"""Weight initialisation."""

from __future__ import annotations

import torch
from torch import nn

from diptych.modules.attention import SelfAttention
from diptych.modules.input_embeddings import keeps_init


def init_transformer(module: nn.Module, std: float = 0.02) -> None:
    """BERT's and ViT's rule, for `Module.apply`: truncated normal weights, zero biases, identity LayerNorm.

    Parameters outside of layers (class tokens, position grids) are initialised by their module; embeddings passed to a
    model's constructor (InputEmbeddings) keep their weights. Differs: new heads
    follow this rule too; some official codes (ALBEF, BLIP) keep PyTorch's default for them.
    """
    if keeps_init(module):
        return
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=std)
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_blocks(blocks: nn.ModuleList, dim: int) -> None:
    """CLIP's rule for pre-norm blocks, after GPT-2's: residual output layers have a std that falls with depth.

    Biases are zero. Source: official code, `initialize_parameters`.
    """
    residual_std = dim**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        attention, feedforward = block.get_submodule("attention"), block.get_submodule("feedforward")
        projections = ("qkv",) if isinstance(attention, SelfAttention) else ("query", "key", "value")
        stds = [(attention, name, dim**-0.5) for name in projections] + [(attention, "out", residual_std)]
        stds += [(feedforward, "fc1", (2 * dim) ** -0.5), (feedforward, "fc2", residual_std)]
        for module, name, std in stds:
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def scale_init(module: nn.Module, factor: float) -> None:
    """Multiplies linear layers' weights by `factor`, tied ones once: std 0.02 suits 768 channels, fewer need more.

    Embeddings passed to a model's constructor (InputEmbeddings) keep their weights.
    """
    for weight in {part.weight for part in module.modules() if isinstance(part, nn.Linear) and not keeps_init(part)}:
        weight.mul_(factor)
