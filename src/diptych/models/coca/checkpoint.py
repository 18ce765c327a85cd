"""CoCa's checkpoints: open_clip's weight names.

The fused projections of torch.nn.MultiheadAttention become separate query, key and value layers in cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from diptych.checkpoints.mapping import TRANSPOSED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.positions import AbsolutePositions
from diptych.models.clip.checkpoint import (
    PATCHES,
    PROJECTED,
    RESBLOCK,
    activation,
    blocks,
    image_shape,
    text_shape,
    tower_num_heads,
)
from diptych.models.coca.config import CoCaConfig
from diptych.modules.position import resize_bicubic
from diptych.objectives.itc import ITCLoss
from diptych.objectives.lm import LMLoss
from diptych.objectives.pretraining import Pretraining

QKV = ("query", "key", "value")


def _split_names(weight: str) -> tuple[str, ...]:
    """Names for the query, key and value parts of one weight."""
    return tuple(f"{weight}[{part}]" for part in QKV)


def _attention(official: str, ours: str, fused: tuple[str, ...]) -> KeyMapping:
    """Cross-attention; `fused`: the official weights that concatenate query, key and value."""
    table = {
        name: f"attention.{part}.{weight.rpartition('_')[2]}"
        for weight in fused
        for name, part in zip(_split_names(weight), QKV, strict=True)
    }
    table |= weight_and_bias("out_proj", "attention.out")
    split = {f"{official}attn.{weight}": tuple(f"{official}attn.{x}" for x in _split_names(weight)) for weight in fused}
    return KeyMapping(prefixed(f"{official}attn.", ours, table), split=split)


def _pool(arguments: Arguments) -> KeyMapping:
    """The attentional pooler: torch saves one fused weight if image and embedding have the same width, else three."""
    official, ours = "visual.attn_pool.", "model.pool."
    table = {"query": "query", **weight_and_bias("ln_q", "norm"), **weight_and_bias("ln_k", "context_norm")}
    if arguments["dim"] == arguments["text_dim"]:
        return _attention(official, ours, ("in_proj_weight", "in_proj_bias")) | KeyMapping(
            prefixed(official, ours, table)
        )
    table |= {f"attn.{part[0]}_proj_weight": f"attention.{part}.weight" for part in QKV}
    return _attention(official, ours, ("in_proj_bias",)) | KeyMapping(prefixed(official, ours, table))


TEXT = KeyMapping(
    {
        "text.token_embedding.weight": "model.text.word.weight",
        "text.positional_embedding": "model.text.position",
        "text.cls_emb": "model.text.cls",
        **blocks("text.transformer.", "model.text."),
        **weight_and_bias("text.ln_final", "model.text_norm"),
        "text.text_projection": "heads.itc.text.weight",
        "text_decoder.text_projection": "model.lm_head.weight",
        **weight_and_bias("text_decoder.ln_final", "model.norm"),
    },
    transforms={"text.text_projection": TRANSPOSED, "text_decoder.text_projection": TRANSPOSED},
)
CROSS_BLOCK = {name: ours for name, ours in RESBLOCK.items() if not name.startswith("attn.")}
CROSS_BLOCK |= weight_and_bias("ln_1_kv", "context_norm")


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments."""
    table = (
        PATCHES
        | PROJECTED
        | _pool(arguments)
        | TEXT
        | KeyMapping(weight_and_bias("visual.ln_post", "model.image_norm"))
    )
    for i in range(arguments["decoder_depth"]):
        cross, ours = f"text_decoder.cross_attn.{i}.", f"model.cross_blocks.{i}."
        table |= KeyMapping(
            prefixed(f"text_decoder.resblocks.{i}.", f"model.self_blocks.{i}.", RESBLOCK)
            | prefixed(cross, ours, CROSS_BLOCK)
        )
        table |= _attention(cross, ours, ("in_proj_weight", "in_proj_bias"))
    return table


def task(state: State) -> str:
    """Always "pretraining": open_clip's CoCa has the ITC and the captioning loss alone."""
    return "pretraining"


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of CoCa for a checkpoint under official names. Raises WeightsError.

    The id of the padding token cannot be inferred from shapes: it is 0, as in open_clip, unless the config states it.
    """
    queries, width = shape_of(state, "visual.attn_pool.query", 2)
    sizes = image_shape(state, config) | text_shape(state, config, "text.")
    return sizes | {
        "text_length": sizes["text_length"] - 1,  # the last position belongs to [CLS]
        "num_queries": queries,
        "pool_num_heads": infer_num_heads(width, config, "pool_num_heads", "vision_cfg.attn_pooler_heads", published=8),
        "decoder_depth": count_layers(state, "text_decoder.resblocks", "ln_1.weight"),
        "decoder_num_heads": tower_num_heads(width, config, "decoder_num_heads", "multimodal_cfg", "decoder_heads"),
        "decoder_mlp_dim": shape_of(state, "text_decoder.resblocks.0.mlp.c_fc.weight", 2)[0],
        "activation": activation(config, "gelu"),
        "pad_token_id": stated(config, "pad_token_id", "pad_id", "text_cfg.pad_id") or 0,
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The training step of a checkpoint: ITC, and captioning with weight 2."""
    model = config_of(CoCaConfig, arguments).build()
    return Pretraining(model, model.pretraining_heads(), [ITCLoss(), LMLoss("caption", weight=2.0)])


ADAPTER = CheckpointAdapter(
    name="coca",
    config_class=CoCaConfig,
    matches=lambda state: "text.cls_emb" in state and "text_decoder.text_projection" in state,
    task=task,
    infer=infer,
    names=names,
    build=build,
    losses=lambda task, heads: ("itc", "lm"),
    positions=(AbsolutePositions("visual.positional_embedding", "model.image.patches.position", resize_bicubic),),
)
