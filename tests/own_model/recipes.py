"""Runs of the mean pair."""

from __future__ import annotations

from dataclasses import replace

from diptych.models.mean_pair.config import MeanPairConfig

from diptych.config.objectives import ITC, Objectives
from diptych.config.run import Pretrain
from diptych.models.vilt import recipes as vilt


def tiny() -> Pretrain:
    """ITC on the built-in scenes: 1,500 steps of 64 pairs at 80 pixels."""
    return replace(vilt.tiny(), recipe="mean_pair.tiny", model=MeanPairConfig(), objectives=Objectives(itc=ITC()))
