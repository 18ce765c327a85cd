"""VSE++'s weights: the official file's two states, which SCAN's repeats."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, OfficialConfig, State, shape
from diptych.checkpoints.mapping import KeyMapping, weight_and_bias
from diptych.models.vsepp.model import VSEpp
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import TripletLoss

MARK = "txt_enc.rnn.weight_ih_l0"
BACKWARD = f"{MARK}_reverse"
SCANS = {"bi_gru", "cross_attn", "raw_feature_norm", "agg_func", "lambda_lse", "lambda_softmax", "regions"}
"""Settings that SCAN has and VSE++ has not: a SCAN that reads in one direction calls its weights as VSE++ does."""


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names that a checkpoint is read and written by."""
    ways = ("", "_reverse") if arguments.get("bidirectional") else ("",)
    parts = [
        f"{kind}_l{layer}{way}"
        for layer in range(arguments["depth"])
        for way in ways
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    return KeyMapping(
        weight_and_bias("img_enc.fc", "model.image")
        | {"txt_enc.embed.weight": "model.text.word.weight"}
        | {f"txt_enc.rnn.{part}": f"model.text.gru.{part}" for part in parts}
    )


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.vsepp.VSEpp that stand in shapes. Raises WeightsError."""
    width, features = shape(state, "img_enc.fc.weight", 2)
    vocabulary, word_width = shape(state, "txt_enc.embed.weight", 2)
    depth = len({layer[1] for name in state if (layer := re.fullmatch(r"txt_enc\.rnn\..+_l(\d+)(?:_reverse)?", name))})
    return {
        "feature_dim": features, "dim": width, "vocab_size": vocabulary, "word_dim": word_width, "depth": depth,
    }  # fmt: skip


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that it was trained in, whose hinge has no weights."""
    return Pretraining(VSEpp(**arguments), nn.ModuleDict(), [TripletLoss()])


SYSTEM = CheckpointAdapter(
    name="vsepp",
    matches=lambda state: MARK in state and BACKWARD not in state,
    matches_config=lambda told: not SCANS & told.keys(),
    task=lambda state: "pretraining",
    names=names,
    infer=infer,
    build=build,
    model_prefix="model",
)
