"""Conversion between weight normalisation in checkpoints and the plain weight.

``torch.nn.utils.weight_norm(linear, dim=None)`` saves a direction v, shaped like the weight, and one scale g for the
whole matrix: w = g · v / ‖v‖. Newer PyTorch saves the two as ``parametrizations.weight.original0`` and ``original1``.

Source: Salimans and Kingma, NeurIPS 2016.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.utils.state_dict import listed


def fold_weight_norm(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state with each of `names` ("main.0.weight") as a plain weight, computed as PyTorch's module computes it.

    Raises:
        WeightsError: g without v, g of more than one element, or a v that is 0; the message names the weight.
        NonFinite: g or v is NaN or infinite.
    """
    plain = dict(state)
    for name in names:
        g, v = (next((x for x in pair if x in state), pair[0]) for pair in _pairs(name))
        present = [part for part in (g, v) if part in state]
        if not present:
            continue
        if len(present) == 1:
            raise WeightsError(f"missing weights: {g if present == [v] else v}, which belongs to {present[0]}")
        if state[g].numel() != 1:
            raise WeightsError(
                f"{g} is {tuple(state[g].shape)}; expected one element, as in the official code (dim=None)"
            )
        if bad := nonfinite({part: state[part] for part in present}):
            raise NonFinite(f"NaN or infinite weights: {listed(bad)}")
        scale, direction = plain.pop(g), plain.pop(v)
        if not direction.is_meta and not direction.any():
            raise WeightsError(f"{v} is 0 everywhere, so it has no direction")
        plain[name] = direction * (scale.reshape(()) / direction.norm())
    return plain


def unfold_weight_norm(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state with each of `names` as g, its norm, and v, itself: the exact inverse of `fold_weight_norm`."""
    normed = {name: tensor for name, tensor in state.items() if name not in set(names)}
    for name in names:
        if name in state:
            normed |= {f"{name}_g": state[name].norm(), f"{name}_v": state[name]}
    return normed


def _pairs(name: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The names under which g and v may be saved: by older and by newer PyTorch."""
    module = name.removesuffix("weight")
    newer = f"{module}parametrizations.weight.original"
    return (f"{name}_g", f"{newer}0"), (f"{name}_v", f"{newer}1")
