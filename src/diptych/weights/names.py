"""Official names to ours and back: one dictionary per paper, strict both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from diptych.weights.read import WeightsError

_LAYER = re.compile(r"(?<=blocks\.)\d+(?=\.)")


@dataclass(frozen=True)
class Names:
    """`ours`: official name → our name, ``{i}`` standing for a block's number. `dead`: official names that hold nothing
    to load, each with the reason. `flat`: official names of patch convolutions, which we keep as linear layers.
    """

    ours: Mapping[str, str]
    dead: Mapping[str, str] = field(default_factory=dict)
    flat: frozenset[str] = frozenset()

    def __or__(self, other: Names) -> Names:
        return Names({**self.ours, **other.ours}, {**self.dead, **other.dead}, self.flat | other.flat)

    def from_official(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names. Raises WeightsError naming every weight that has no place."""
        alive = {name: tensor for name, tensor in official.items() if name not in self.dead}
        unknown = [name for name in alive if _pattern(name) not in self.ours]
        if unknown:
            raise WeightsError(f"unexpected weights: {listed(unknown)}; is this another model's checkpoint?")
        return {
            _filled(self.ours[_pattern(name)], name): tensor.flatten(1) if name in self.flat else tensor
            for name, tensor in alive.items()
        }

    def to_official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names, of weights or of their gradients. Raises WeightsError naming what the paper does not have."""
        back = {our: official for official, our in self.ours.items()}
        unknown = [name for name in ours if _pattern(name) not in back]
        if unknown:
            raise WeightsError(f"weights without an official name: {listed(unknown)}")
        named = {_filled(back[_pattern(name)], name): tensor for name, tensor in ours.items()}
        return {name: _square(tensor) if name in self.flat else tensor for name, tensor in named.items()}


def _pattern(name: str) -> str:
    """The name with the number in "blocks.N." replaced by {i}; heads' own numbers stay."""
    return _LAYER.sub("{i}", name)


def _filled(pattern: str, name: str) -> str:
    number = _LAYER.search(name)
    return pattern.replace("{i}", number.group()) if number else pattern


def _square(linear: Tensor) -> Tensor:
    """A linear layer over square RGB patches as the convolution it is."""
    side = math.isqrt(linear.shape[1] // 3)
    return linear.unflatten(1, (3, side, side))


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads every weight or none. Raises WeightsError that names what is missing, unexpected or of another shape."""
    check_fit(module, state, source)
    with torch.no_grad():
        module.load_state_dict(dict(state))


def check_fit(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raises WeightsError unless `state` holds the module's weights, each in its shape, and nothing else."""
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(names for _, names in problems):
        told = "; ".join(f"{what}: {listed(names)}" for what, names in problems if names)
        raise WeightsError(f"{source} does not fit: {told}")


def listed(names: Iterable[str], most: int = 6) -> str:
    """A few names for a message."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state that lies under `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def both(official: str, ours: str) -> dict[str, str]:
    """Weight and bias of one layer."""
    return {f"{official}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
