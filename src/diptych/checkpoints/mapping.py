"""Official names to ours and back: one dictionary per paper, strict both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.checkpoints.weight_norm import fold_weight_norm, unfold_weight_norm
from diptych.utils.state_dict import listed

_LAYER = re.compile(r"(?<=blocks\.)\d+(?=\.)")
_PART = re.compile(r"(.+)\[(\d+)/(\d+)\]")  # "qkv.weight[0/3]": the first third of ours is that official weight


@dataclass(frozen=True)
class Transform:
    """How a weight is kept there and here."""

    to_ours: Callable[[Tensor], Tensor]
    to_official: Callable[[Tensor], Tensor]


def _square(linear: Tensor) -> Tensor:
    """A linear layer over square RGB patches as the convolution it is."""
    side = math.isqrt(linear.shape[1] // 3)
    return linear.unflatten(1, (3, side, side))


FLAT = Transform(lambda kernel: kernel.flatten(1), _square)  # a patch convolution, which we keep as a linear layer
TURNED = Transform(lambda matrix: matrix.T, lambda matrix: matrix.T)  # a matrix that is multiplied from the right
ONE = Transform(lambda x: x[None], lambda x: x[0])  # we keep a dimension of 1 in front
ROW = Transform(lambda row: row[0], lambda row: row[None])  # a dimension of 1 in front that is there and not here
ONES = Transform(lambda x: x[None, None], lambda x: x[0, 0])  # two of them


@dataclass(frozen=True)
class KeyMapping:
    """`ours`: official name → our name, ``{i}`` standing for the number in "blocks.N."; several official weights may be
    parts of one of ours ("qkv.weight[0/3]"). `dead`: official names that hold nothing to load, each with the reason.
    `twins`: official name → the official weight that it repeats (tied weights, saved twice). `forms`: official names whose
    tensors are kept otherwise here. `split`: official weights that hold several of ours side by side → a name for each
    part, by which the others speak of them. `normed`: official weights that are kept weight-normed, as NAME_g and NAME_v.
    """

    ours: Mapping[str, str]
    ignored: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, Transform] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    normed: tuple[str, ...] = ()

    def __or__(self, other: KeyMapping) -> KeyMapping:
        return KeyMapping(
            {**self.ours, **other.ours},
            {**self.ignored, **other.ignored},
            {**self.tied, **other.tied},
            {**self.forms, **other.forms},
            {**self.split, **other.split},
            self.normed + other.normed,
        )

    @property
    def teacher_names(self) -> list[str]:
        """The official names of what stands beside a student: its teacher's weights and its queue."""
        return [official for official, our in self.ours.items() if our.startswith(("teacher.", "queue."))]

    @property
    def without_teacher(self) -> KeyMapping:
        """The part of a student that was beside its teacher, as it stands alone."""
        stem = "student."
        ours = {official: our.removeprefix(stem) for official, our in self.ours.items() if our.startswith(stem)}
        parts = {official.partition(".")[0] for official in ours}
        twins = {
            name: twin for name, twin in self.tied.items() if {name.partition(".")[0], twin.partition(".")[0]} <= parts
        }
        dead = {name: why for name, why in self.ignored.items() if name.partition(".")[0] in parts}
        return KeyMapping(ours, dead, twins, {name: form for name, form in self.forms.items() if name in ours})

    def from_official(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names. Raises WeightsError naming every weight that has no place, and twins that differ; NonFinite."""
        official = self._apart(fold_weight_norm(official, self.normed))
        alive = {
            name: tensor for name, tensor in official.items() if name not in self.ignored and name not in self.tied
        }
        unknown = [name for name in alive if name not in self.ours and _pattern(name) not in self.ours]
        if unknown:
            raise WeightsError(f"unexpected weights: {listed(unknown)}; is this another model's checkpoint?")
        if spoiled := nonfinite(alive):
            raise NonFinite(f"NaN or infinite weights: {listed(spoiled)}")
        apart = [name for name, twin in self.tied.items() if name in official and _differ(official, name, twin)]
        if apart:
            raise WeightsError(f"weights that must be tied differ: {listed(f'{n} and {self.tied[n]}' for n in apart)}")
        named = {
            _translated(self.ours, name): self.forms[name].to_ours(tensor) if name in self.forms else tensor
            for name, tensor in alive.items()
        }
        return _merged(named, self.official_name)

    def official_name(self, our: str) -> str:
        """The official name of one of our weights, or of a part of one ("qkv.weight[0/3]")."""
        table = {mine: official for official, mine in self.ours.items()}
        return _filled(table[our if our in table else _pattern(our)], our)

    def to_official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names, of weights or of their gradients, twins again under both. Raises WeightsError naming what the
        paper does not have.
        """
        back: dict[str, list[tuple[str, int, int]]] = {}  # ours → official, and which of how many parts it is
        for official, our in self.ours.items():
            part = _PART.fullmatch(our)
            stem, at, count = (part[1], int(part[2]), int(part[3])) if part else (our, 0, 1)
            back.setdefault(stem, []).append((official, at, count))
        unknown = [name for name in ours if name not in back and _pattern(name) not in back]
        if unknown:
            raise WeightsError(f"weights without an official name: {listed(unknown)}")
        named = {
            _filled(official, name): tensor.chunk(count)[at] if count > 1 else tensor
            for name, tensor in ours.items()
            for official, at, count in (back[name] if name in back else back[_pattern(name)])
        }
        named = {name: self.forms[name].to_official(x) if name in self.forms else x for name, x in named.items()}
        named = unfold_weight_norm(named, self.normed)
        for name, parts in self.split.items():
            if all(part in named for part in parts):
                named[name] = torch.cat([named.pop(part) for part in parts])
        return named | {name: named[twin] for name, twin in self.tied.items() if twin in named}

    def _apart(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        apart = {name: tensor for name, tensor in official.items() if name not in self.split}
        for name, parts in self.split.items():
            if name in official:
                apart.update(zip(parts, official[name].chunk(len(parts)), strict=True))
        return apart


def _merged(named: Mapping[str, Tensor], official_name: Callable[[str], str]) -> dict[str, Tensor]:
    """Parts of one weight side by side. Raises WeightsError where one is missing."""
    whole = {name: tensor for name, tensor in named.items() if not _PART.fullmatch(name)}
    parts: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    for name, tensor in named.items():
        if part := _PART.fullmatch(name):
            parts.setdefault(part[1], {})[int(part[2])] = tensor
            counts[part[1]] = int(part[3])
    missing = [f"{name}[{i}/{n}]" for name, n in counts.items() for i in range(n) if i not in parts[name]]
    if missing:
        theirs = listed(official_name(part) for part in missing)
        raise WeightsError(f"missing parts of weights: {listed(missing)}; in the official names: {theirs}")
    return whole | {name: torch.cat([found[i] for i in range(counts[name])]) for name, found in parts.items()}


def _differ(state: Mapping[str, Tensor], name: str, twin: str) -> bool:
    if twin not in state or state[name].is_meta:  # a missing twin is named elsewhere; on meta there are but shapes
        return False
    return not torch.equal(state[name], state[twin])


def _pattern(name: str) -> str:
    """The name with the number in "blocks.N." replaced by {i}; heads' own numbers stay."""
    return _LAYER.sub("{i}", name)


def _translated(table: Mapping[str, str], name: str) -> str:
    return table[name] if name in table else _filled(table[_pattern(name)], name)


def _filled(pattern: str, name: str) -> str:
    number = _LAYER.search(name)
    return pattern.replace("{i}", number.group()) if number else pattern


def weight_and_bias(official: str, ours: str) -> dict[str, str]:
    """Weight and bias of one layer."""
    return {f"{official}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def prefixed(official: str, ours: str, table: Mapping[str, str]) -> dict[str, str]:
    """A table of names, each side under a prefix of its own (with its dot)."""
    return {f"{official}{name}": f"{ours}{our}" for name, our in table.items()}


def fused(official: Iterable[str], ours: str) -> dict[str, str]:
    """Official layers (query, key, value) that are one layer here, side by side."""
    layers = list(official)
    return {
        f"{layer}.{kind}": f"{ours}.{kind}[{i}/{len(layers)}]"
        for i, layer in enumerate(layers)
        for kind in ("weight", "bias")
    }


def within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state that lies under `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
