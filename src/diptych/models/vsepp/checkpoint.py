"""VSE++'s official checkpoints: a list of two states, for image and text, as SCAN's are too."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, State, config_of, shape_of
from diptych.checkpoints.mapping import KeyMapping, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.models.vsepp.config import VSEppConfig
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import TripletLoss

GRU_WEIGHT = "txt_enc.rnn.weight_ih_l0"
BACKWARD = f"{GRU_WEIGHT}_reverse"
SCANS = {"bi_gru", "cross_attn", "raw_feature_norm", "agg_func", "lambda_lse", "lambda_softmax", "regions"}
"""Config keys of SCAN alone: they identify a SCAN with a unidirectional GRU, whose weights have VSE++'s names."""


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments."""
    directions = ("", "_reverse") if arguments.get("bidirectional") else ("",)
    parts = [
        f"{kind}_l{layer}{direction}"
        for layer in range(arguments["depth"])
        for direction in directions
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    return KeyMapping(
        weight_and_bias("img_enc.fc", "model.image")
        | {"txt_enc.embed.weight": "model.text.word.weight"}
        | {f"txt_enc.rnn.{part}": f"model.text.gru.{part}" for part in parts}
    )


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The sizes of VSE++ or SCAN for a checkpoint under official names. Raises WeightsError."""
    width, features = shape_of(state, "img_enc.fc.weight", 2)
    vocabulary, word_width = shape_of(state, "txt_enc.embed.weight", 2)
    depth = len({layer[1] for name in state if (layer := re.fullmatch(r"txt_enc\.rnn\..+_l(\d+)(?:_reverse)?", name))})
    return {
        "feature_dim": features,
        "dim": width,
        "vocab_size": vocabulary,
        "word_dim": word_width,
        "depth": depth,
    }


def arguments(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of VSEpp: sizes from shapes, the measure from the config. Raises WeightsError."""
    measure = stated(config, "measure", "measure")
    return infer(state, config) | ({} if measure is None else {"measure": measure})


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint: the triplet loss, which has no weights."""
    return Pretraining(config_of(VSEppConfig, arguments).build(), nn.ModuleDict(), [TripletLoss()])


ADAPTER = CheckpointAdapter(
    name="vsepp",
    config_class=VSEppConfig,
    matches=lambda state: GRU_WEIGHT in state and BACKWARD not in state,
    matches_config=lambda config: not SCANS & config.keys(),
    task=lambda state: "pretraining",
    names=names,
    infer=arguments,
    build=build,
    losses=lambda task, heads: ("triplet",),
    model_prefix="model",
    fixed={"use_abs": (False,), "no_imgnorm": (False,)},
)
