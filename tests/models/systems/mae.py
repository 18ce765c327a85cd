from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.models.mae.config import MAEConfig
from diptych.models.mae.model import MAE
from diptych.modules.tokens import Tokens
from diptych.objectives.mim import MIMLoss
from diptych.objectives.pretraining import Pretraining
from tests.models.systems.common import GRID, PATCH, Forward, Job, System, encode_image


def masked_patches(batch: Batch) -> Tensor:
    """Every second patch of the padded grid."""
    assert batch.image is not None
    return (torch.arange(GRID[0] * GRID[1]) % 2 == 0).expand(len(batch), -1)


def call_with_masked_patches(model: MAE, batch: Batch) -> list[Tokens | Tensor]:
    return [model(batch.image, masked_patches(batch))]


def compose_with_masked_patches(model: MAE, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.image is not None
    patches = model.embed_image(batch.image)
    visible = torch.cat([torch.ones(len(batch), 1, dtype=torch.bool), ~masked_patches(batch)], 1)
    return [model.reconstruct(model.encode_visible(patches.apply_mask(visible)), patches.layout)]


SYSTEMS = {
    "mae": System(
        small=lambda: MAE(
            MAEConfig(
                32, 2, 4, 64, PATCH, GRID, decoder_dim=64, decoder_depth=1, decoder_num_heads=4, decoder_mlp_dim=64
            )
        ),
        full=lambda: MAE(MAEConfig()),
        methods={"encode_image": encode_image},
        forward=Forward(call_with_masked_patches, compose_with_masked_patches),
        jobs={"pretraining": Job(lambda m: Pretraining(m, nn.ModuleDict(), [MIMLoss()]), {"mim": 1.0}, exempt={})},
    ),
}
