"""Strict loading of checkpoints: every weight has its place, or it is named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.utils.state_dict import listed, load_state, mismatch


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads every weight or none. Raises WeightsError that names what does not fit."""
    check_fit(module, state, source)
    load_state(module, state)


def check_fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raises WeightsError unless `state` holds the module's weights, each of them finite, and nothing else."""
    if told := mismatch(module, state):
        raise WeightsError(f"{source} does not fit: {told}")
    if spoiled := nonfinite(state):
        raise NonFinite(f"{source} holds NaN or infinite weights: {listed(spoiled)}")
