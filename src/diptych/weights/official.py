"""Importing an official checkpoint: its file, in any of its layouts, to our names and a model's arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from diptych.layers.position import Resize, resize_bicubic, resize_bilinear
from diptych.weights import vilt, vit
from diptych.weights.layouts import unified
from diptych.weights.names import Names, check_fit, listed, load_strict
from diptych.weights.read import WeightsError, read_checkpoint

SYSTEMS: dict[str, ModuleType] = {"vit": vit, "vilt": vilt}
"""Each module has names(state), task(state), infer(state, heads, grid) and build(arguments, task, state)."""

MARKS = {"transformer.patch_embed.proj.weight": "vilt", "patch_embed.proj.weight": "vit"}
"""The weight by which each system's official checkpoints are known."""

RESIZES: dict[str, Resize] = {"vit": resize_bicubic, "vilt": resize_bilinear}
"""How each official code fits its position grid to another image size when it loads a checkpoint."""

POSITION = "model.patches.position"
POSITIONS = {"vit": "pos_embed", "vilt": "transformer.pos_embed"}
"""Its official name."""


@dataclass(frozen=True)
class Imported:
    """An official checkpoint in our terms.

    `task`: what it was trained for: pretraining, vqa, retrieval, nlvr2, classification, or encoder where it has no
    head. `arguments`: the model's. `state`: every weight of the step `build` makes, in our names. `dead`: what was
    left behind, and why.
    """

    system: str
    task: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    dead: dict[str, str]
    names: Names

    @property
    def heads(self) -> list[str]:
        """The heads it holds: "heads.match", "head", "model.head" …"""
        parts = {".".join(name.split(".")[: 2 if name.startswith("heads.") else 1]) for name in self.state}
        inside = {"model.head"} if "model.head.weight" in self.state else set()
        return sorted(parts - {"model"} | inside)

    def build(self) -> nn.Module:
        """The step it was trained in, with its weights, ready to train or evaluate."""
        step = SYSTEMS[self.system].build(self.arguments, self.task, self.state)
        load_strict(step, self.state, f"this {self.system} checkpoint")
        return step


def load_official(system: str, path: Path, heads: int | None = None, grid: tuple[int, int] | None = None) -> Imported:
    """Reads an official checkpoint: ViLT's own or Hugging Face's; for ViT timm's, Hugging Face's or JAX's.

    `heads` are attention heads, for widths that are no multiple of 64. `grid`: rows and columns of the position grid.
    A square number of positions is taken for a square grid, which is resized to `grid` by the system's own rule; any
    other number is taken to lie as `grid`. Raises WeightsError, one line that names the file and the weights.
    """
    if system not in SYSTEMS:
        raise WeightsError(f"no system {system!r} to import; there are {', '.join(SYSTEMS)}")
    official = read_checkpoint(path)
    try:
        official, told_heads = unified(system, official)
        lies = grid if _is_no_square(official.get(POSITIONS[system])) else None
        return resized(understood(system, official, heads or told_heads, lies), grid)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (RuntimeError, IndexError) as error:  # torch's own words on tensors of an unforeseen shape
        raise WeightsError(f"{path}: its shapes fit no layout of {system} ({str(error).splitlines()[0]})") from None


def _is_no_square(position: Tensor | None) -> bool:
    cells = position.shape[1] - 1 if position is not None and position.dim() == 3 else 0
    return math.isqrt(max(cells, 0)) ** 2 != cells


def recognise(official: Mapping[str, Tensor]) -> str:
    """The system an officially named checkpoint belongs to. Raises WeightsError."""
    for mark, system in MARKS.items():
        if mark in official:
            return system
    raise WeightsError(f"a checkpoint of no known system; there are {', '.join(SYSTEMS)}")


def understood(
    system: str, official: Mapping[str, Tensor], heads: int | None = None, grid: tuple[int, int] | None = None
) -> Imported:
    """An officially named state in our terms; `grid` says how its positions lie, a square unless told.

    Names and shapes are checked before anything of the model's size is made. Raises WeightsError.
    """
    module = SYSTEMS[system]
    arguments = module.infer(official, heads, grid)
    names: Names = module.names(official)
    state, task = _float32(names.from_official(official)), module.task(official)
    with torch.device("meta"):
        check_fit(module.build(arguments, task, state), state, f"this {system} checkpoint")
    dead = {name: why for name, why in names.dead.items() if name in official}
    return Imported(system, task, arguments, state, dead, names)


def _float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    odd = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if odd:
        raise WeightsError(f"not of floating point: {listed(odd)}")
    return {name: tensor.float() for name, tensor in state.items()}


def resized(imported: Imported, grid: tuple[int, int] | None) -> Imported:
    """The same checkpoint with its position grid fitted to other image sizes; None leaves it."""
    if grid is None or grid == imported.arguments["grid"]:
        return imported
    position = resize_positions(imported.state[POSITION], imported.arguments["grid"], grid, RESIZES[imported.system])
    arguments, state = imported.arguments | {"grid": grid}, imported.state | {POSITION: position}
    return Imported(imported.system, imported.task, arguments, state, imported.dead, imported.names)


def resize_positions(position: Tensor, old: tuple[int, int], new: tuple[int, int], resize: Resize) -> Tensor:
    """(1, 1 + old cells, d) to (1, 1 + new cells, d); the class token's position stays."""
    cells = resize(position[0, 1:].unflatten(0, old), *new).flatten(0, 1)
    return torch.cat([position[:, :1], cells[None]], 1)
