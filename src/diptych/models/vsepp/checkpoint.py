"""VSE++'s weights: the official file's two states, which SCAN's repeats."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, State, System, Told, shape
from diptych.checkpoints.mapping import Names, both
from diptych.models.vsepp.model import VSEpp
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import Hinge

MARK = "txt_enc.rnn.weight_ih_l0"
BACKWARD = f"{MARK}_reverse"
SCANS = {"bi_gru", "cross_attn", "raw_feature_norm", "agg_func", "lambda_lse", "lambda_softmax", "regions"}
"""Settings that SCAN has and VSE++ has not: a SCAN that reads in one direction calls its weights as VSE++ does."""


def names(arguments: Arguments, task: str) -> Names:
    """The table of names that a checkpoint is read and written by."""
    ways = ("", "_reverse") if arguments.get("bidirectional") else ("",)
    parts = [
        f"{kind}_l{layer}{way}"
        for layer in range(arguments["depth"])
        for way in ways
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    return Names(
        both("img_enc.fc", "model.image")
        | {"txt_enc.embed.weight": "model.text.word.weight"}
        | {f"txt_enc.rnn.{part}": f"model.text.gru.{part}" for part in parts}
    )


def infer(state: State, told: Told) -> dict[str, Any]:
    """The arguments of models.vsepp.VSEpp that stand in shapes. Raises WeightsError."""
    width, features = shape(state, "img_enc.fc.weight", 2)
    vocabulary, word_width = shape(state, "txt_enc.embed.weight", 2)
    depth = len({layer[1] for name in state if (layer := re.fullmatch(r"txt_enc\.rnn\..+_l(\d+)(?:_reverse)?", name))})
    return {
        "features": features, "width": width, "vocabulary": vocabulary, "word_width": word_width, "depth": depth,
    }  # fmt: skip


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that it was trained in, whose hinge has no weights."""
    return Pretraining(VSEpp(**arguments), nn.ModuleDict(), [Hinge()])


SYSTEM = System(
    name="vsepp",
    known=lambda state: MARK in state and BACKWARD not in state,
    meant=lambda told: not SCANS & told.keys(),
    task=lambda state: "pretraining",
    names=names,
    infer=infer,
    build=build,
    nest="model",
)
