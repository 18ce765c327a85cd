"""A golden folder: weights, settings, inputs and the numbers that the official code made of them."""

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

from diptych.checkpoints.adapter import with_grid
from diptych.checkpoints.mapping import KeyMapping
from diptych.checkpoints.read import WeightsError, read_checkpoint, read_states
from diptych.checkpoints.wrappers import unwrap
from diptych.models.importing import Imported, identify_system, map_official

FILES = ("checkpoint.pth", "config.json", "case.safetensors")
SAID = re.compile(r"^\| `(\S+)` \|.*\| (.*) \|$", re.MULTILINE)
"""A line of the README's table: a tensor and its meaning, the shape and the type between them."""
WEIGHTLESS = {"mixgen": "texts_mixgen"}
"""What has no weights, and so no checkpoint, by the setting that it alone has."""


@dataclass(frozen=True)
class Golden:
    """`inputs` and `expected`: its in.* and out.* tensors, without these prefixes."""

    imported: Imported
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    hashes: dict[str, str]  # SHA-256 of each file
    meanings: dict[str, str] = field(default_factory=dict)  # what its README, where there is one, says of each tensor

    def step(self) -> nn.Module:
        """What training runs, with its weights."""
        return nn.Module() if self.imported.system in WEIGHTLESS else self.imported.build()


@dataclass(frozen=True)
class Case:
    """A golden as it is recomputed in one layout: the step that training runs, and what it is given."""

    step: nn.Module
    config: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of out.*: how long generated texts may be
    meanings: Mapping[str, str] = field(default_factory=dict)

    def input(self, name: str) -> Tensor:
        """Raises LookupError where the golden does not have it."""
        if name not in self.inputs:
            raise LookupError(f"there is no in.{name}")
        return self.inputs[name]

    def said(self, name: str, pattern: str, published: str) -> str:
        """What the README says of out.NAME, or of in.*, for the few settings that stand in no other file; `pattern` has
        one group.
        """
        found = re.search(pattern, self.meanings.get(name if name.startswith("in.") else f"out.{name}", ""))
        return found[1] if found else published


@dataclass(frozen=True)
class Answer:
    """A recomputed tensor; `real` says which of its cells hold something (its leading dimensions; None: all)."""

    value: Tensor
    real: Bool[Tensor, "*cells"] | None = None


Table = dict[str, Callable[[], Answer]]
"""How to recompute each tensor, by its name without "out."."""


def answered(tensors: Mapping[str, Callable[[], Tensor]]) -> Table:
    """A table of tensors whose every cell holds something."""
    return {name: lambda make=make: Answer(make()) for name, make in tensors.items()}


@runtime_checkable
class Answers(Protocol):
    """What a paper can recompute of a case."""

    def table(self) -> Table:
        """All that the step can be asked for; what is not in it, nobody knows how to recompute."""
        ...

    def total(self) -> Tensor:
        """The loss that training minimises, whose gradients the golden holds."""
        ...


def read_golden(folder: Path) -> Golden:
    """Raises WeightsError where a file is missing, broken, or of a system that is not here."""
    for name in FILES[1:]:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: no {name} there; a golden folder holds {', '.join(FILES)}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{folder / 'config.json'}: not readable as JSON ({error})") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{folder / 'config.json'}: holds a {type(config).__name__}, not names and values")
    imported = _imported(folder, config)
    tensors = read_checkpoint(folder / "case.safetensors")
    kinds: dict[str, dict[str, Tensor]] = {"in.": {}, "out.": {}}
    for name, tensor in tensors.items():
        prefix = next((p for p in kinds if name.startswith(p)), None)
        if prefix is None:
            raise WeightsError(f"{folder / 'case.safetensors'}: {name} is neither in.* nor out.*")
        kinds[prefix][name.removeprefix(prefix)] = tensor
    if not kinds["out."]:
        raise WeightsError(f"{folder / 'case.safetensors'}: holds no out.*, so nothing could be compared")
    there = [name for name in FILES if (folder / name).is_file()]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in there}
    readme = folder / "README.md"
    said = dict(SAID.findall(readme.read_text(encoding="utf-8", errors="replace"))) if readme.is_file() else {}
    return Golden(imported, config, kinds["in."], kinds["out."], hashes, said)


def _imported(folder: Path, config: Mapping[str, Any]) -> Imported:
    """The checkpoint, or what has none. Raises WeightsError."""
    path = folder / "checkpoint.pth"
    if path.is_file():
        held = read_states(path)
        return unwrap(path, held, lambda x: map_official(identify_system(x, config), x, with_grid(config)))[0]
    for system, mark in WEIGHTLESS.items():
        if mark in config:
            return Imported(system, "augmentation", {}, {}, {}, KeyMapping({}))
    raise WeightsError(f"{folder}: no {path.name} there; a golden folder holds {', '.join(FILES)}")
