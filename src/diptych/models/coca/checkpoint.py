"""CoCa's weights: open_clip's names. Where torch's attention keeps three projections as one weight, we keep them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, OfficialConfig, State, count, heads_of, shape
from diptych.checkpoints.mapping import TURNED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.positions import Absolute
from diptych.models.clip.checkpoint import (
    PATCHES,
    PROJECTED,
    RESBLOCK,
    activation,
    blocks,
    heads_told,
    image_shape,
    part,
    text_shape,
)
from diptych.models.coca.model import CoCa
from diptych.modules.position import resize_bicubic
from diptych.objectives.itc import ITC
from diptych.objectives.lm import LM
from diptych.objectives.pretraining import Pretraining

ASKS = ("query", "key", "value")


def _apart(weight: str) -> tuple[str, ...]:
    """Names for the three parts of one weight."""
    return tuple(f"{weight}[{asks}]" for asks in ASKS)


def _attention(official: str, ours: str, together: tuple[str, ...]) -> KeyMapping:
    """Attention to a context; `together`: which of its weights hold query, key and value side by side."""
    table = {
        name: f"attention.{asks}.{weight.rpartition('_')[2]}"
        for weight in together
        for name, asks in zip(_apart(weight), ASKS, strict=True)
    }
    table |= weight_and_bias("out_proj", "attention.out")
    split = {f"{official}attn.{weight}": tuple(f"{official}attn.{x}" for x in _apart(weight)) for weight in together}
    return KeyMapping(prefixed(f"{official}attn.", ours, table), split=split)


def _pool(arguments: Arguments) -> KeyMapping:
    """The pooler: torch's attention keeps three weights, and one where the image's width is the embedding's."""
    official, ours = "visual.attn_pool.", "model.pool."
    table = {"query": "query", **weight_and_bias("ln_q", "norm"), **weight_and_bias("ln_k", "context_norm")}
    if arguments["dim"] == arguments["text_dim"]:
        return _attention(official, ours, ("in_proj_weight", "in_proj_bias")) | KeyMapping(
            prefixed(official, ours, table)
        )
    table |= {f"attn.{asks[0]}_proj_weight": f"attention.{asks}.weight" for asks in ASKS}
    return _attention(official, ours, ("in_proj_bias",)) | KeyMapping(prefixed(official, ours, table))


TEXT = KeyMapping(
    {
        "text.token_embedding.weight": "model.text.word.weight",
        "text.positional_embedding": "model.text.position",
        "text.cls_emb": "model.text.cls",
        **blocks("text.transformer.", "model.text."),
        **weight_and_bias("text.ln_final", "model.text_norm"),
        "text.text_projection": "heads.contrast.text.weight",
        "text_decoder.text_projection": "model.vocabulary.weight",
        **weight_and_bias("text_decoder.ln_final", "model.norm"),
    },
    forms={"text.text_projection": TURNED, "text_decoder.text_projection": TURNED},
)
LOOK = {name: ours for name, ours in RESBLOCK.items() if not name.startswith("attn.")}
LOOK |= weight_and_bias("ln_1_kv", "context_norm")


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names that a checkpoint is read and written by."""
    table = (
        PATCHES
        | PROJECTED
        | _pool(arguments)
        | TEXT
        | KeyMapping(weight_and_bias("visual.ln_post", "model.image_norm"))
    )
    for i in range(arguments["decoder_depth"]):
        look, ours = f"text_decoder.cross_attn.{i}.", f"model.looks.{i}."
        table |= KeyMapping(
            prefixed(f"text_decoder.resblocks.{i}.", f"model.reads.{i}.", RESBLOCK) | prefixed(look, ours, LOOK)
        )
        table |= _attention(look, ours, ("in_proj_weight", "in_proj_bias"))
    return table


def task(state: State) -> str:
    """Contrast and captions are all that open_clip's CoCa is trained for."""
    return "pretraining"


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.coca.CoCa. The padding's id stands in no shape: 0 unless told, as open_clip has it. Raises
    WeightsError.
    """
    decoder, pool = part(told, "multimodal_cfg"), part(told, "vision_cfg").get("attn_pooler_heads", 8)
    queries, width = shape(state, "visual.attn_pool.query", 2)
    found = image_shape(state, told) | text_shape(state, told, "text.")
    return found | {
        "text_length": found["text_length"] - 1,  # the last position is the [CLS]'s
        "num_queries": queries,
        "pool_num_heads": heads_of(width, pool),
        "decoder_depth": count(state, "text_decoder.resblocks", "ln_1.weight"),
        "decoder_num_heads": heads_told(width, told, decoder, "decoder_heads"),
        "decoder_mlp_dim": shape(state, "text_decoder.resblocks.0.mlp.c_fc.weight", 2)[0],
        "activation": activation(told, "gelu"),
        "pad_token_id": told.get("pad_id", part(told, "text_cfg").get("pad_id", 0)),
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The step that a checkpoint was trained in: contrast, and captions of twice its weight."""
    model = CoCa(**arguments)
    return Pretraining(model, model.pretraining_heads(), [ITC(), LM("caption", weight=2.0)])


SYSTEM = CheckpointAdapter(
    name="coca",
    matches=lambda state: "text.cls_emb" in state and "text_decoder.text_projection" in state,
    task=task,
    infer=infer,
    names=names,
    build=build,
    positions=(Absolute("visual.positional_embedding", "model.image.patches.position", resize_bicubic),),
)
