"""Strict loading of checkpoints: every weight is loaded, or the error names those that do not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.utils.state_dict import listed, load_state, mismatch


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads every weight or none.

    Args:
        source: the file or folder, for the message.

    Raises:
        WeightsError: weights that do not fit; the message names them.
    """
    check_fit(module, state, source)
    load_state(module, state)


def check_fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raises WeightsError unless `state` has the module's weights, each of them finite, and nothing else."""
    if problems := mismatch(module, state):
        raise WeightsError(f"{source} does not fit: {problems}")
    if bad := nonfinite(state):
        raise NonFinite(f"{source} holds NaN or infinite weights: {listed(bad)}")
