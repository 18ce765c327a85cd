"""SCAN's official checkpoints: VSE++'s weight names, a bidirectional GRU, and attention settings from the config."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, State, config_of
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.models.scan.config import SCANConfig
from diptych.models.vsepp.checkpoint import GRU_WEIGHT, SCANS, infer, names
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import TripletLoss

OPTIONS = {
    "cross_attn": "direction",
    "raw_feature_norm": "norm",
    "agg_func": "aggregate",
    "lambda_softmax": "lambda_softmax",
    "lambda_lse": "lambda_lse",
}
"""The official options of the stacked cross-attention, and our constructor arguments."""
VALUES = {
    "t2i": "text",
    "i2t": "image",
    "clipped_l2norm": "clipped_l2",
    "l2norm": "l2",
    "no_norm": "none",
    "LogSumExp": "logsumexp",
    "Mean": "mean",
    "Max": "max",
    "Sum": "sum",
}
"""Values of the official options, and ours."""


def arguments(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of SCAN: sizes from shapes, attention settings from the config. Raises WeightsError."""
    values = {ours: stated(config, ours, option) for option, ours in OPTIONS.items()}
    attention = {name: VALUES.get(value, value) for name, value in values.items() if value is not None}
    return infer(state, config) | {"bidirectional": any(name.endswith("_reverse") for name in state)} | attention


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint: the triplet loss, which has no weights."""
    return Pretraining(config_of(SCANConfig, arguments).build(), nn.ModuleDict(), [TripletLoss()])


ADAPTER = CheckpointAdapter(
    name="scan",
    config_class=SCANConfig,
    matches=lambda state: GRU_WEIGHT in state,
    matches_config=lambda config: bool(SCANS & config.keys()),
    task=lambda state: "pretraining",
    names=names,
    infer=arguments,
    build=build,
    losses=lambda task, heads: ("triplet",),
    model_prefix="model",
    fixed={"no_imgnorm": (False,), "no_txtnorm": (False,), "precomp_enc_type": ("basic",)},
)
