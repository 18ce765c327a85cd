"""Saving and loading of a module's weights by name: tied weights are saved once, loading is all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def without_weights() -> Iterator[None]:
    """Context in which modules are built on the meta device: they have shapes, and neither memory nor values."""
    with torch.device("meta"), _WithoutDraws():
        yield


class _WithoutDraws(TorchFunctionMode):
    """Leaves tensors as they are where random numbers would be written into them.

    On the meta device torch would import its compiler for it, which takes a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:  # a method of a tensor, or a function of nn.init
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


_DRAWS = {
    "normal_", "uniform_", "bernoulli_", "exponential_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_",
    "xavier_uniform_", "xavier_normal_",
}  # fmt: skip


def tied_weights(module: nn.Module) -> dict[str, str]:
    """Repeated names of tied weights → the first name of the weight.

    The order is that of `named_parameters`: the first name is that of the module which was registered first (the word
    embedding, not the LM head).
    """
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {name: first[id(t)] for name, t in state.items() if first.setdefault(id(t), name) != name}


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a module, sharing its memory, with each tied weight once, under its first name."""
    repeated = tied_weights(module)
    return {name: t for name, t in module.state_dict().items() if name not in repeated}


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads every weight; `mismatch` tests beforehand whether they fit."""
    with torch.no_grad():
        module.load_state_dict(_with_tied(module, state))


def mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """A message on weights that are missing, unexpected, or of another shape; "" if `state` fits the module exactly.

    A tied weight may be given under any of its names, or under several if the values are equal.
    """
    expected = module.state_dict()
    untied = [
        f"{repeated} and {first}"
        for repeated, first in tied_weights(module).items()
        if repeated in state and first in state and _differ(state[repeated], state[first])
    ]
    state = _with_tied(module, state)
    shapes = [
        f"{name} is {_kind(state[name])}, the model has {_kind(expected[name])}"
        for name in expected
        if name in state and _kind(state[name]) != _kind(expected[name])
    ]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": shapes,
        "tied here, but different": untied,
    }
    return "; ".join(f"{problem}: {listed(names)}" for problem, names in problems.items() if names)


def listed(names: Iterable[str], max_names: int = 6) -> str:
    """The first few names, and the number of the others, for a message."""
    names = list(names)
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else " of integers")


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape differ; False on the meta device, which stores no values."""
    return a.shape == b.shape and not a.is_meta and not b.is_meta and not torch.equal(a, b)


def _with_tied(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with tied weights under all of their names."""
    complete = dict(state)
    for repeated, first in tied_weights(module).items():
        if first in complete and repeated not in complete:
            complete[repeated] = complete[first]
        elif repeated in complete and first not in complete:
            complete[first] = complete[repeated]
    return complete
