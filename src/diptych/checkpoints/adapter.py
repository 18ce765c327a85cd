"""What is to be known of a paper's official checkpoints: one `System` each, in that paper's file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diptych.checkpoints.mapping import KeyMapping, within
from diptych.checkpoints.positions import Positions
from diptych.checkpoints.read import WeightsError

State = Mapping[str, Tensor]
OfficialConfig = Mapping[str, Any]
"""What stands in no shape: a golden's config.json, or what the user gave (num_heads, grid)."""
Arguments = Mapping[str, Any]
"""A model's, as plain values."""
Exported = tuple[dict[str, Any], dict[str, Tensor], list[str]]
"""For Hugging Face: a config, the weights under their names, and what has no place there, a sentence each."""

SIZES = ("img_size", "image_size_of_pos_embed", "image_size")
"""What configs call the size of the images that a position grid is made for."""


@dataclass(frozen=True)
class CheckpointAdapter:
    """`known`, `task` and `infer` read an officially named state; each raises WeightsError where it does not understand it.
    `names` and `build` follow from what they found, so that a run that was trained here can be exported too.
    """

    name: str
    matches: Callable[[State], bool]  # whether it is this system's
    task: Callable[[State], str]  # what it was trained for: pretraining, vqa, retrieval …; encoder where it has no head
    infer: Callable[[State, OfficialConfig], dict[str, Any]]  # the arguments of models.NAME
    names: Callable[
        [Arguments, str], KeyMapping
    ]  # (arguments, task): official names and ours, of more heads than a state has
    build: Callable[[Arguments, str, State], nn.Module]  # (arguments, task, state in our names): the step
    matches_config: Callable[[OfficialConfig], bool] = lambda told: (
        True
    )  # of systems of the same names: whether what is told speaks of it
    positions: tuple[Positions, ...] = ()  # of which a checkpoint has one
    model_prefix: str = ""  # the key under which the official file keeps its weights


def split_teacher(state: State) -> tuple[State, bool]:
    """What a state (our names) holds of a student, and whether it stands beside its teacher."""
    beside = not any(name.startswith("model.") for name in state)
    return (within(state, "student."), True) if beside else (state, False)


def shape(state: State, name: str, dimensions: int) -> tuple[int, ...]:
    """A weight's shape. Raises WeightsError where it is missing or has another number of dimensions."""
    if name not in state:
        raise WeightsError(f"missing weights: {name}; is this another model's checkpoint?")
    if state[name].dim() != dimensions or not state[name].numel():
        raise WeightsError(f"{name} is {tuple(state[name].shape)}, where {dimensions} dimensions are needed")
    return tuple(state[name].shape)


def has(state: State, part: str) -> bool:
    """Whether any weight's name begins with `part`, so that a part of the model which lacks one weight is still there."""
    return any(name.startswith(part) for name in state)


def count(state: State, stem: str, mark: str) -> int:
    """The number of layers "stem.N" that have the part of "stem.N.mark": all but its last word, so that a layer which lacks
    one weight counts, and that weight is named as missing.
    """
    part = mark.rpartition(".")[0] + "."
    inside = (name[len(stem) + 1 :].partition(".") for name in state if name.startswith(f"{stem}."))
    return len({number for number, _, rest in inside if rest.startswith(part)})


def first_marker(state: State, marks: Mapping[str, str]) -> str:
    """The task of the first mark that some weight's name begins with; "encoder" where there is none."""
    return next((task for mark, task in marks.items() if any(name.startswith(mark) for name in state)), "encoder")


def heads_of(dim: int, told: object) -> int:
    """A number of attention heads: as told, else one per 64 of width. Raises WeightsError."""
    if told is None and dim % 64:
        raise WeightsError(f"width {dim} is no multiple of 64, so the number of heads is unknown; give --heads")
    heads = dim // 64 if told is None else told
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise WeightsError(f"the number of heads is {heads!r}, which is no whole number")
    if heads < 1 or dim % heads:
        raise WeightsError(f"width {dim} does not divide into {heads} heads; give another --heads")
    return heads


WIDE_HEADS = {1280: 16, 1408: 16, 1664: 16, 1792: 16}
"""Heads of the published image encoders in which a head is wider than 64: ViT-H, -g, -G and -e."""


def image_heads(dim: int, told: object) -> int:
    """The same of an image encoder. Raises WeightsError."""
    return heads_of(dim, WIDE_HEADS.get(dim) if told is None else told)


def grid_of(cells: int, told: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """Rows and columns of a position grid: as told, else a square. Raises WeightsError."""
    side = math.isqrt(cells)
    grid = told or (side, side)
    if grid[0] * grid[1] != cells:
        shape = f"{grid[0]} x {grid[1]} is {grid[0] * grid[1]}" if told else "that is no square"
        raise WeightsError(f"{name} has {cells} cells, but {shape}; give --grid ROWSxCOLUMNS of {cells} cells")
    return grid


def vision_grid(vision: OfficialConfig, told: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of the grid of images that are not square, which ALBEF's and BLIP's settings of vision may tell."""
    size, patch = vision.get("image_size"), vision.get("patch_size")
    return (size[0] // patch, size[1] // patch) if isinstance(size, list) and isinstance(patch, int) else told


def with_grid(config: OfficialConfig) -> dict[str, Any]:
    """Settings, with the position grid where the images that they are for are not square. Raises WeightsError."""
    size = next((config[name] for name in SIZES if name in config), None)
    patch = config.get("patch_size")
    if not isinstance(size, list) or isinstance(patch, list):
        return dict(config)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in (*size, patch)):
        raise WeightsError(f"the settings' image size {size} and patch size {patch!r} make no grid")
    return {**config, "grid": (size[0] // patch, size[1] // patch)}


def square(grid: Sequence[int], name: str) -> int:
    """The side of a position grid where only squares have a place. Raises WeightsError."""
    rows, columns = grid
    if rows != columns:
        raise WeightsError(
            f"Hugging Face's {name} has square pictures: one of {rows} × {columns} patches has no place there"
        )
    return rows
