"""SCAN's weights: VSE++'s names, and the words read in both directions."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, OfficialConfig, State
from diptych.models.scan.model import SCAN
from diptych.models.vsepp.checkpoint import MARK, SCANS, infer, names
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import TripletLoss

ATTENDING = {"cross_attn": "direction", "raw_feature_norm": "norm", "agg_func": "aggregate", "lambda_softmax": "lambda_softmax",
             "lambda_lse": "lambda_lse"}  # fmt: skip
"""The official options by which regions and words attend, and our arguments."""
VALUES = {"t2i": "text", "i2t": "image", "clipped_l2norm": "clipped_l2", "l2norm": "l2", "no_norm": "none",
          "LogSumExp": "logsumexp", "Mean": "mean", "Max": "max", "Sum": "sum"}  # fmt: skip
"""What the official options may be, and we call otherwise."""


def arguments(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.scan.SCAN: sizes as shapes have them, how it attends as it is told. Raises WeightsError."""
    attending = {ours: VALUES.get(told[option], told[option]) for option, ours in ATTENDING.items() if option in told}
    return infer(state, told) | {"bidirectional": any(name.endswith("_reverse") for name in state)} | attending


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that it was trained in, whose hinge has no weights."""
    return Pretraining(SCAN(**arguments), nn.ModuleDict(), [TripletLoss()])


SYSTEM = CheckpointAdapter(
    name="scan",
    matches=lambda state: MARK in state,
    matches_config=lambda told: bool(SCANS & told.keys()),
    task=lambda state: "pretraining",
    names=names,
    infer=arguments,
    build=build,
    model_prefix="model",
)
