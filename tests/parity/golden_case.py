"""A golden folder: weights, config, inputs, and the outputs that the official code computed from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor, nn

from diptych.checkpoints.mapping import KeyMapping
from diptych.checkpoints.read import WeightsError, load_all_state_dicts, load_state_dict
from diptych.checkpoints.wrappers import unwrap
from diptych.models.importing import OfficialCheckpoint, identify_system, map_official

FILES = ("checkpoint.pth", "config.json", "case.safetensors")
README_ROW = re.compile(r"^\| `(\S+)` \|.*\| (.*) \|$", re.MULTILINE)
"""A row of the README's table: tensor, shape, dtype, meaning."""
WEIGHTLESS = {"mixgen": "texts_mixgen"}
"""Systems without weights, and so without a checkpoint → the config key that identifies them."""


@dataclass(frozen=True)
class Golden:
    """The content of a golden folder. `inputs` and `expected`: its in.* and out.* tensors, without these prefixes."""

    imported: OfficialCheckpoint
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    hashes: dict[str, str]  # SHA-256 of each file
    meanings: dict[str, str] = field(default_factory=dict)  # of tensors, from the README if there is one

    def step(self) -> nn.Module:
        """The training step with its weights."""
        return nn.Module() if self.imported.system in WEIGHTLESS else self.imported.build()


@dataclass(frozen=True)
class Case:
    """What a recomputation needs of a golden folder: the training step, the config and the inputs."""

    step: nn.Module
    config: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of out.*, for the lengths of generated texts
    meanings: Mapping[str, str] = field(default_factory=dict)

    def input(self, name: str) -> Tensor:
        """The tensor in.NAME. Raises LookupError if the folder lacks it."""
        if name not in self.inputs:
            raise LookupError(f"case.safetensors has no in.{name}")
        return self.inputs[name]

    def from_readme(self, name: str, pattern: str, published: str) -> str:
        """A setting from the README's description of out.NAME (or in.*), for the few that no other file has.

        Args:
            pattern: a regular expression with one group.
            published: the default.
        """
        match = re.search(pattern, self.meanings.get(name if name.startswith("in.") else f"out.{name}", ""))
        return match[1] if match else published


@dataclass(frozen=True)
class Recomputed:
    """A recomputed tensor. `mask`: which positions, in its leading dimensions, are not padding (None: all)."""

    value: Tensor
    mask: Bool[Tensor, "*cells"] | None = None


Table = dict[str, Callable[[], Recomputed]]
"""How to recompute each tensor, by its name without "out."."""


def unmasked(tensors: Mapping[str, Callable[[], Tensor]]) -> Table:
    """A table of tensors without padding."""
    return {name: lambda make=make: Recomputed(make()) for name, make in tensors.items()}


@runtime_checkable
class Recomputation(Protocol):
    """The tensors of a case that a system can recompute."""

    def table(self) -> Table:
        """A function for every tensor; a name that is not in the table cannot be recomputed and fails."""
        ...

    def total(self) -> Tensor:
        """The training loss, whose gradients are compared."""
        ...


def read_golden(folder: Path) -> Golden:
    """Reads a golden folder. Raises WeightsError if a file is missing or damaged, or the system is unknown."""
    for name in FILES[1:]:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: no {name} there; a golden folder holds {', '.join(FILES)}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{folder / 'config.json'}: not readable as JSON ({error})") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{folder / 'config.json'}: holds a {type(config).__name__}; expected an object")
    imported = _imported(folder, config)
    tensors = load_state_dict(folder / "case.safetensors")
    kinds: dict[str, dict[str, Tensor]] = {"in.": {}, "out.": {}}
    for name, tensor in tensors.items():
        prefix = next((p for p in kinds if name.startswith(p)), None)
        if prefix is None:
            raise WeightsError(f"{folder / 'case.safetensors'}: unexpected tensor {name}; expected in.* or out.*")
        kinds[prefix][name.removeprefix(prefix)] = tensor
    if not kinds["out."]:
        raise WeightsError(f"{folder / 'case.safetensors'}: holds no out.*, so nothing can be compared")
    files = [name for name in FILES if (folder / name).is_file()]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return Golden(imported, config, kinds["in."], kinds["out."], hashes, dict(README_ROW.findall(text)))


def _imported(folder: Path, config: Mapping[str, Any]) -> OfficialCheckpoint:
    """The imported checkpoint, or an empty one for a system without weights. Raises WeightsError."""
    path = folder / "checkpoint.pth"
    if path.is_file():
        return unwrap(path, load_all_state_dicts(path), lambda x: map_official(identify_system(x, config), x, config))[
            0
        ]
    for system, key in WEIGHTLESS.items():
        if key in config:
            return OfficialCheckpoint(system, "augmentation", {}, {}, {}, KeyMapping({}))
    raise WeightsError(f"{folder}: no {path.name} there; a golden folder holds {', '.join(FILES)}")
