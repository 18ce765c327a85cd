"""Translation of official weight names to ours and back: one table for each system, strict in both directions."""

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
_PART = re.compile(r"(.+)\[(\d+)/(\d+)\]")  # "qkv.weight[0/3]": the official weight is the first third of ours


@dataclass(frozen=True)
class Transform:
    """A change of layout between an official weight and ours, in both directions."""

    to_ours: Callable[[Tensor], Tensor]
    to_official: Callable[[Tensor], Tensor]


def _square(linear: Tensor) -> Tensor:
    """A linear layer on square RGB patches, (d, 3·p·p), as a convolution kernel, (d, 3, p, p)."""
    side = math.isqrt(linear.shape[1] // 3)
    return linear.unflatten(1, (3, side, side))


CONV_AS_LINEAR = Transform(lambda kernel: kernel.flatten(1), _square)  # official: a patch convolution
TRANSPOSED = Transform(lambda matrix: matrix.T, lambda matrix: matrix.T)  # official: x @ weight
UNSQUEEZED = Transform(lambda x: x[None], lambda x: x[0])  # ours has a leading dimension of 1
SQUEEZED = Transform(lambda row: row[0], lambda row: row[None])  # official: a leading dimension of 1
UNSQUEEZED_TWICE = Transform(lambda x: x[None, None], lambda x: x[0, 0])  # ours has two leading dimensions of 1


@dataclass(frozen=True)
class KeyMapping:
    """A table of official weight names and ours.

    `ours`: official name → our name, where ``{i}`` stands for the number in "blocks.N."; several official weights may
    be parts of one of ours ("qkv.weight[0/3]").
    `ignored`: official names that are not loaded → the reason.
    `tied`: official name → the official weight that it repeats (tied weights, saved twice).
    `transforms`: official name → the change of its layout.
    `split`: an official weight that is the concatenation of several of ours → a name for each part, used in `ours`.
    `weight_normed`: official weights that are saved with weight normalisation, as NAME_g and NAME_v.
    """

    ours: Mapping[str, str]
    ignored: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weight_normed: tuple[str, ...] = ()

    def __or__(self, other: KeyMapping) -> KeyMapping:
        return KeyMapping(
            {**self.ours, **other.ours},
            {**self.ignored, **other.ignored},
            {**self.tied, **other.tied},
            {**self.transforms, **other.transforms},
            {**self.split, **other.split},
            self.weight_normed + other.weight_normed,
        )

    @property
    def teacher_names(self) -> list[str]:
        """The official names of the momentum teacher's weights and of the queue."""
        return [official for official, our in self.ours.items() if our.startswith(("teacher.", "queue."))]

    @property
    def without_teacher(self) -> KeyMapping:
        """The table of the student alone, without its momentum teacher and queue."""
        stem = "student."
        ours = {official: our.removeprefix(stem) for official, our in self.ours.items() if our.startswith(stem)}
        parts = {official.partition(".")[0] for official in ours}
        tied = {
            name: other
            for name, other in self.tied.items()
            if {name.partition(".")[0], other.partition(".")[0]} <= parts
        }
        ignored = {name: reason for name, reason in self.ignored.items() if name.partition(".")[0] in parts}
        transforms = {name: transform for name, transform in self.transforms.items() if name in ours}
        return KeyMapping(ours, ignored, tied, transforms)

    def from_official(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state under our names.

        Raises:
            WeightsError: weights without an entry in the table, or tied weights that differ; the message names them.
            NonFinite: weights that are NaN or infinite.
        """
        official = self._split(fold_weight_norm(official, self.weight_normed))
        loaded = {
            name: tensor for name, tensor in official.items() if name not in self.ignored and name not in self.tied
        }
        unknown = [name for name in loaded if name not in self.ours and _to_pattern(name) not in self.ours]
        if unknown:
            raise WeightsError(f"unexpected weights: {listed(unknown)}; is this another model's checkpoint?")
        if bad := nonfinite(loaded):
            raise NonFinite(f"NaN or infinite weights: {listed(bad)}")
        untied = [name for name, other in self.tied.items() if name in official and _differ(official, name, other)]
        if untied:
            raise WeightsError(f"weights that must be tied differ: {listed(f'{n} and {self.tied[n]}' for n in untied)}")
        named = {
            _translate(self.ours, name): self.transforms[name].to_ours(tensor) if name in self.transforms else tensor
            for name, tensor in loaded.items()
        }
        return _merged(named, self.official_name)

    def official_name(self, our: str) -> str:
        """The official name of one of our weights, or of a part of one ("qkv.weight[0/3]")."""
        table = {name: official for official, name in self.ours.items()}
        return _fill_pattern(table[our if our in table else _to_pattern(our)], our)

    def to_official(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights, or their gradients, under official names; tied weights under each of their names.

        Raises:
            WeightsError: weights without an official name; the message names them.
        """
        back: dict[
            str, list[tuple[str, int, int]]
        ] = {}  # our name → (official name, index of the part, number of parts)
        for official, our in self.ours.items():
            part = _PART.fullmatch(our)
            stem, index, count = (part[1], int(part[2]), int(part[3])) if part else (our, 0, 1)
            back.setdefault(stem, []).append((official, index, count))
        unknown = [name for name in ours if name not in back and _to_pattern(name) not in back]
        if unknown:
            raise WeightsError(f"weights without an official name: {listed(unknown)}")
        named = {
            _fill_pattern(official, name): tensor.chunk(count)[index] if count > 1 else tensor
            for name, tensor in ours.items()
            for official, index, count in (back[name] if name in back else back[_to_pattern(name)])
        }
        named = {
            name: self.transforms[name].to_official(x) if name in self.transforms else x for name, x in named.items()
        }
        named = unfold_weight_norm(named, self.weight_normed)
        for name, parts in self.split.items():
            if all(part in named for part in parts):
                named[name] = torch.cat([named.pop(part) for part in parts])
        return named | {name: named[other] for name, other in self.tied.items() if other in named}

    def _split(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state with each weight in `split` replaced by its parts."""
        state = {name: tensor for name, tensor in official.items() if name not in self.split}
        for name, parts in self.split.items():
            if name in official:
                state.update(zip(parts, official[name].chunk(len(parts)), strict=True))
        return state


def _merged(named: Mapping[str, Tensor], official_name: Callable[[str], str]) -> dict[str, Tensor]:
    """The state with the parts of each weight concatenated. Raises WeightsError if a part is missing."""
    complete = {name: tensor for name, tensor in named.items() if not _PART.fullmatch(name)}
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
    return complete | {name: torch.cat([found[i] for i in range(counts[name])]) for name, found in parts.items()}


def _differ(state: Mapping[str, Tensor], name: str, other: str) -> bool:
    if other not in state or state[name].is_meta:  # a missing weight is reported elsewhere; meta tensors have no values
        return False
    return not torch.equal(state[name], state[other])


def _to_pattern(name: str) -> str:
    """The name with the number in "blocks.N." replaced by {i}; other numbers, as those of heads, stay."""
    return _LAYER.sub("{i}", name)


def _translate(table: Mapping[str, str], name: str) -> str:
    """The entry of `table` for a name, or for its pattern."""
    return table[name] if name in table else _fill_pattern(table[_to_pattern(name)], name)


def _fill_pattern(pattern: str, name: str) -> str:
    """`pattern` with {i} replaced by the number in the "blocks.N." of `name`."""
    number = _LAYER.search(name)
    return pattern.replace("{i}", number.group()) if number else pattern


def weight_and_bias(official: str, ours: str) -> dict[str, str]:
    """The table of the weight and the bias of one layer."""
    return {f"{official}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def prefixed(official: str, ours: str, table: Mapping[str, str]) -> dict[str, str]:
    """A table of names with a prefix (including its dot) added to each side."""
    return {f"{official}{name}": f"{ours}{our}" for name, our in table.items()}


def concat_layers(official: Iterable[str], ours: str) -> dict[str, str]:
    """The table of several official layers (query, key, value) that are concatenated to one layer here."""
    layers = list(official)
    return {
        f"{layer}.{kind}": f"{ours}.{kind}[{i}/{len(layers)}]"
        for i, layer in enumerate(layers)
        for kind in ("weight", "bias")
    }


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state whose names begin with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
