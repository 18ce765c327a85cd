"""Strict loading: every weight has its place, or it is named."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.weights.names import listed
from diptych.weights.read import WeightsError


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads every weight or none. Raises WeightsError that names what is missing, unexpected or of another shape."""
    check_fit(module, state, source)
    with torch.no_grad():
        module.load_state_dict(_with_tied(module, state))


def check_fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raises WeightsError unless `state` holds the module's weights, each in its shape, and nothing else.

    A tied weight may stand under any one of its names.
    """
    wanted = module.state_dict()
    state = _with_tied(module, state)
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {_kind(state[name])}, the model has {_kind(wanted[name])}"
        for name in wanted
        if name in state and _kind(state[name]) != _kind(wanted[name])
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(names for _, names in problems):
        told = "; ".join(f"{what}: {listed(names)}" for what, names in problems if names)
        raise WeightsError(f"{source} does not fit: {told}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else " of integers")


def tied(module: nn.Module) -> dict[str, str]:
    """Names under which a parameter appears again → the name under which it appears first."""
    first: dict[int, str] = {}
    again = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            again[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return again


def _with_tied(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    filled = dict(state)
    for again, first in tied(module).items():
        if first in filled and again not in filled:
            filled[again] = filled[first]
        elif again in filled and first not in filled:
            filled[first] = filled[again]
    return filled
