"""MAE's official checkpoints: weight names of encoder and decoder, and sizes inferred from shapes.

The released encoder alone has the names of a ViT (models.vit.checkpoint).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    State,
    config_of,
    count_layers,
    infer_num_heads,
    shape_of,
)
from diptych.checkpoints.mapping import CONV_AS_LINEAR, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig
from diptych.models.mae.config import MAEConfig
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.objectives.mim import MIMLoss
from diptych.objectives.pretraining import Pretraining

NAMES = KeyMapping(
    {
        **prefixed("", "model.", PATCHES),
        **prefixed("", "model.", BLOCK),
        **weight_and_bias("norm", "model.norm"),
        **weight_and_bias("decoder_embed", "model.decoder.embed"),
        "mask_token": "model.decoder.mask",
        "decoder_pos_embed": "model.decoder.position",
        **prefixed("decoder_", "model.decoder.", BLOCK),
        **weight_and_bias("decoder_norm", "model.decoder.norm"),
        **weight_and_bias("decoder_pred", "model.decoder.predict"),
    },
    transforms={"patch_embed.proj.weight": CONV_AS_LINEAR},
)


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of MAE for a checkpoint under official names. Raises WeightsError.

    The decoder's number of heads cannot be inferred from shapes: it is 16, as published, unless the config states it.
    """
    width, _ = shape_of(state, "decoder_embed.weight", 2)
    return encoder_shape(state, "", config, "num_heads", "num_heads") | {
        "decoder_dim": width,
        "decoder_depth": count_layers(state, "decoder_blocks", "norm1.weight"),
        "decoder_num_heads": infer_num_heads(width, config, "decoder_num_heads", "decoder_num_heads", published=16),
        "decoder_mlp_dim": shape_of(state, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint: masked image modelling, without heads."""
    return Pretraining(config_of(MAEConfig, arguments).build(), nn.ModuleDict(), [MIMLoss()])


ADAPTER = CheckpointAdapter(
    name="mae",
    config_class=MAEConfig,
    matches=lambda state: "mask_token" in state and "decoder_pred.weight" in state,
    task=lambda state: "pretraining",
    names=lambda arguments, task: NAMES,
    infer=infer,
    build=build,
    losses=lambda task, heads: ("mim",),
    model_prefix="model",
)
