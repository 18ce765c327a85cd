"""CoCa's weights: open_clip's names. Where torch's attention keeps three projections as one weight, we keep them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, State, System, Told, count, heads_of, shape
from diptych.checkpoints.mapping import TURNED, Names, both, under
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
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.lm import NextWords
from diptych.objectives.pretraining import Pretraining

ASKS = ("query", "key", "value")


def _apart(weight: str) -> tuple[str, ...]:
    """Names for the three parts of one weight."""
    return tuple(f"{weight}[{asks}]" for asks in ASKS)


def _attention(official: str, ours: str, together: tuple[str, ...]) -> Names:
    """Attention to a context; `together`: which of its weights hold query, key and value side by side."""
    table = {
        name: f"attention.{asks}.{weight.rpartition('_')[2]}"
        for weight in together
        for name, asks in zip(_apart(weight), ASKS, strict=True)
    }
    table |= both("out_proj", "attention.out")
    split = {f"{official}attn.{weight}": tuple(f"{official}attn.{x}" for x in _apart(weight)) for weight in together}
    return Names(under(f"{official}attn.", ours, table), split=split)


def _pool(arguments: Arguments) -> Names:
    """The pooler: torch's attention keeps three weights, and one where the image's width is the embedding's."""
    official, ours = "visual.attn_pool.", "model.pool."
    table = {"query": "query", **both("ln_q", "norm"), **both("ln_k", "context_norm")}
    if arguments["width"] == arguments["text_width"]:
        return _attention(official, ours, ("in_proj_weight", "in_proj_bias")) | Names(under(official, ours, table))
    table |= {f"attn.{asks[0]}_proj_weight": f"attention.{asks}.weight" for asks in ASKS}
    return _attention(official, ours, ("in_proj_bias",)) | Names(under(official, ours, table))


TEXT = Names(
    {
        "text.token_embedding.weight": "model.text.word.weight",
        "text.positional_embedding": "model.text.position",
        "text.cls_emb": "model.text.cls",
        **blocks("text.transformer.", "model.text."),
        **both("text.ln_final", "model.text_norm"),
        "text.text_projection": "heads.contrast.text.weight",
        "text_decoder.text_projection": "model.vocabulary.weight",
        **both("text_decoder.ln_final", "model.norm"),
    },
    forms={"text.text_projection": TURNED, "text_decoder.text_projection": TURNED},
)
LOOK = {name: ours for name, ours in RESBLOCK.items() if not name.startswith("attn.")}
LOOK |= both("ln_1_kv", "context_norm")


def names(arguments: Arguments, task: str) -> Names:
    """The table of names that a checkpoint is read and written by."""
    table = PATCHES | PROJECTED | _pool(arguments) | TEXT | Names(both("visual.ln_post", "model.image_norm"))
    for i in range(arguments["decoder_depth"]):
        look, ours = f"text_decoder.cross_attn.{i}.", f"model.looks.{i}."
        table |= Names(under(f"text_decoder.resblocks.{i}.", f"model.reads.{i}.", RESBLOCK) | under(look, ours, LOOK))
        table |= _attention(look, ours, ("in_proj_weight", "in_proj_bias"))
    return table


def task(state: State) -> str:
    """Contrast and captions are all that open_clip's CoCa is trained for."""
    return "pretraining"


def infer(state: State, told: Told) -> dict[str, Any]:
    """The arguments of models.coca.CoCa. The padding's id stands in no shape: 0 unless told, as open_clip has it. Raises
    WeightsError.
    """
    decoder, pool = part(told, "multimodal_cfg"), part(told, "vision_cfg").get("attn_pooler_heads", 8)
    queries, width = shape(state, "visual.attn_pool.query", 2)
    found = image_shape(state, told) | text_shape(state, told, "text.")
    return found | {
        "text_length": found["text_length"] - 1,  # the last position is the [CLS]'s
        "queries": queries,
        "pool_heads": heads_of(width, pool),
        "decoder_depth": count(state, "text_decoder.resblocks", "ln_1.weight"),
        "decoder_heads": heads_told(width, told, decoder, "decoder_heads"),
        "decoder_hidden": shape(state, "text_decoder.resblocks.0.mlp.c_fc.weight", 2)[0],
        "activation": activation(told, "gelu"),
        "pad": told.get("pad_id", part(told, "text_cfg").get("pad_id", 0)),
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The step that a checkpoint was trained in: contrast, and captions of twice its weight."""
    model = CoCa(**arguments)
    return Pretraining(model, model.heads(), [ImageTextContrast(), NextWords("caption", weight=2.0)])


SYSTEM = System(
    name="coca",
    known=lambda state: "text.cls_emb" in state and "text_decoder.text_projection" in state,
    task=task,
    infer=infer,
    names=names,
    build=build,
    positions=(Absolute("visual.positional_embedding", "model.image.patches.position", resize_bicubic),),
)
