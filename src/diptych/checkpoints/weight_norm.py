"""Weight normalisation (Salimans and Kingma, NeurIPS 2016) as files keep it, and the plain weight that it stands for.

``torch.nn.utils.weight_norm(linear, dim=None)`` keeps a direction v, shaped as the weight, and one number g for the whole
matrix: w = g · v / ‖v‖. Newer PyTorch keeps the same two under ``parametrizations.weight.original0`` and ``original1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.utils.state_dict import listed


def fold_weight_norm(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state with each of `names` ("main.0.weight") as a plain weight, computed as PyTorch's module computes it.

    Raises WeightsError naming the weight: g without v, g of more than one number, v that is 0; NonFinite.
    """
    plain = dict(state)
    for name in names:
        g, v = (next((x for x in pair if x in state), pair[0]) for pair in _pairs(name))
        there = [kept for kept in (g, v) if kept in state]
        if not there:
            continue
        if len(there) == 1:
            raise WeightsError(f"missing weights: {g if there == [v] else v}, beside {there[0]}")
        if state[g].numel() != 1:
            raise WeightsError(f"{g} is {tuple(state[g].shape)}, where the official code has one number (dim=None)")
        if spoiled := nonfinite({kept: state[kept] for kept in there}):
            raise NonFinite(f"NaN or infinite weights: {listed(spoiled)}")
        scale, direction = plain.pop(g), plain.pop(v)
        if not direction.is_meta and not direction.any():
            raise WeightsError(f"{v} is 0 everywhere, which is no direction")
        plain[name] = direction * (scale.reshape(()) / direction.norm())
    return plain


def unfold_weight_norm(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state with each of `names` as g and v: its norm and itself, from which `unnormed` computes it exactly."""
    kept = {name: tensor for name, tensor in state.items() if name not in set(names)}
    for name in names:
        if name in state:
            kept |= {f"{name}_g": state[name].norm(), f"{name}_v": state[name]}
    return kept


def _pairs(name: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The names under which g and v may be kept."""
    module = name.removesuffix("weight")
    newer = f"{module}parametrizations.weight.original"
    return (f"{name}_g", f"{newer}0"), (f"{name}_v", f"{newer}1")
