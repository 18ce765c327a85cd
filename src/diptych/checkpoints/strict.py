"""Strict loading of checkpoints: every weight is loaded, or the error names those that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.utils.state_dict import listed, load_state, mismatch, without_weights


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


def differences_beyond_shapes(config: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configs of one class differ, though weights of the same names and shapes fit both values.

    Args:
        config: a model's settings, which `build()` builds.

    Returns:
        Both values of each such setting, by its name.
    """
    values = {f.name: (getattr(config, f.name), getattr(other, f.name)) for f in fields(config)}
    different = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if not different:
        return {}
    own = _shapes(config)
    return {name: pair for name, pair in different.items() if _shapes(config, **{name: pair[1]}) == own}


def _shapes(config: Any, **changed: Any) -> dict[str, torch.Size] | None:
    """The shapes of the weights of a config's model with changed settings; None where no model has these."""
    try:
        with without_weights():
            return {name: tensor.shape for name, tensor in replace(config, **changed).build().state_dict().items()}
    except ValueError:  # a head count that does not divide this config's width, ...
        return None
