"""A module's weights by name: what is saved of it, and what is loaded, every weight or none. Tied ones are one weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def tied_weights(module: nn.Module) -> dict[str, str]:
    """Names under which a weight appears again → the name under which it appears first: that of the part which was made
    first, as in `named_parameters` (the word embedding of a model, not the head above it).
    """
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {name: first[id(t)] for name, t in state.items() if first.setdefault(id(t), name) != name}


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state, which share memory with it. A tied one comes once, under its first name."""
    again = tied_weights(module)
    return {name: t for name, t in module.state_dict().items() if name not in again}


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads every weight; `misfit` says beforehand whether they fit."""
    with torch.no_grad():
        module.load_state_dict(_with_tied(module, state))


def mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What is missing, too much, or of another shape, for a message; "" where `state` holds the module's weights, each in
    its shape, and nothing else. A tied weight may stand under any one of its names, or under several if all are equal.
    """
    wanted = module.state_dict()
    apart = [
        f"{again} and {first}"
        for again, first in tied_weights(module).items()
        if again in state and first in state and _differ(state[again], state[first])
    ]
    state = _with_tied(module, state)
    shapes = [
        f"{name} is {_kind(state[name])}, the model has {_kind(wanted[name])}"
        for name in wanted
        if name in state and _kind(state[name]) != _kind(wanted[name])
    ]
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": shapes,
        "tied here, but different": apart,
    }
    return "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)


def listed(names: Iterable[str], most: int = 6) -> str:
    """A few names for a message."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else " of integers")


def _differ(a: Tensor, b: Tensor) -> bool:
    """On meta there are but shapes."""
    return a.shape == b.shape and not a.is_meta and not b.is_meta and not torch.equal(a, b)


def _with_tied(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    filled = dict(state)
    for again, first in tied_weights(module).items():
        if first in filled and again not in filled:
            filled[again] = filled[first]
        elif again in filled and first not in filled:
            filled[first] = filled[again]
    return filled
