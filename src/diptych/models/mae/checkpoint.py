"""MAE's weights: the official names of encoder and decoder. The encoder alone, as released, is a ViT's (weights.vit)."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, OfficialConfig, State, count, shape
from diptych.checkpoints.mapping import FLAT, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.read import WeightsError
from diptych.models.mae.model import MAE
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.objectives.mim import MIM
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
    forms={"patch_embed.proj.weight": FLAT},
)


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.mae.MAE. The decoder's heads stand in no shape: 16 unless told, as published. Raises
    WeightsError.
    """
    width, _ = shape(state, "decoder_embed.weight", 2)
    heads = told.get("decoder_num_heads", 16)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise WeightsError(f"the decoder's width {width} does not divide into {heads} heads")
    return encoder_shape(state, "", told.get("num_heads"), told.get("grid")) | {
        "decoder_dim": width,
        "decoder_depth": count(state, "decoder_blocks", "norm1.weight"),
        "decoder_num_heads": heads,
        "decoder_mlp_dim": shape(state, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that it was trained in, which has no heads."""
    return Pretraining(MAE(**arguments), nn.ModuleDict(), [MIM()])


SYSTEM = CheckpointAdapter(
    name="mae",
    matches=lambda state: "mask_token" in state and "decoder_pred.weight" in state,
    task=lambda state: "pretraining",
    names=lambda arguments, task: NAMES,
    infer=infer,
    build=build,
    model_prefix="model",
)
