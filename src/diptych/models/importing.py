"""Importing an official checkpoint: its file, in any of its layouts, to our names and a model's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checkpoints.adapter import OfficialConfig, State, with_grid
from diptych.checkpoints.huggingface.folder import read_weights
from diptych.checkpoints.mapping import KeyMapping
from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.checkpoints.strict import check_fit, load_strict
from diptych.checkpoints.wrappers import unwrap
from diptych.models.albef import checkpoint as albef
from diptych.models.beit3 import checkpoint as beit3
from diptych.models.blip import checkpoint as blip
from diptych.models.clip import checkpoint as clip
from diptych.models.clip import resnet_checkpoint
from diptych.models.coca import checkpoint as coca
from diptych.models.crossvit import checkpoint as crossvit
from diptych.models.huggingface.layouts import unified
from diptych.models.mae import checkpoint as mae
from diptych.models.scan import checkpoint as scan
from diptych.models.vilbert import checkpoint as vilbert
from diptych.models.vilt import checkpoint as vilt
from diptych.models.vit import checkpoint as vit
from diptych.models.vlmo import checkpoint as vlmo
from diptych.models.vsepp import checkpoint as vsepp
from diptych.utils.state_dict import listed, named_weights

SYSTEMS = {
    system.name: system
    for system in (
        vit.SYSTEM, vlmo.SYSTEM, vilt.SYSTEM, vsepp.SYSTEM, scan.SYSTEM, vilbert.SYSTEM, crossvit.SYSTEM, mae.SYSTEM,
        beit3.SYSTEM, albef.SYSTEM, blip.SYSTEM, clip.SYSTEM, clip.OPEN_CLIP, resnet_checkpoint.SYSTEM, coca.SYSTEM,
    )
}  # fmt: skip
"""The papers whose official checkpoints are understood."""


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
    ignored: dict[str, str]
    names: KeyMapping
    ignored_tensors: dict[str, Tensor] = field(default_factory=dict)  # the dead ones themselves, for export
    notes: list[str] = field(default_factory=list)  # what was wrapped around them, and what else the file holds

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


def load_official(
    system: str,
    path: Path,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    settings: OfficialConfig | None = None,
) -> Imported:
    """Reads an official checkpoint: ViLT's own or Hugging Face's; for ViT timm's, Hugging Face's or JAX's.

    `heads` are attention heads, for widths that are no multiple of 64. `grid`: rows and columns of the position grid.
    A square number of positions is taken for a square grid, which is resized to `grid` by the system's own rule; any
    other number is taken to lie as `grid`. `settings`: what stands in no shape, by the official code's names (ViLBERT's
    schedule, open_clip's config), or the model's own "arguments". Raises WeightsError, one line that names the file and
    the weights.
    """
    if system not in SYSTEMS:
        raise WeightsError(f"no system {system!r} to import; there are {', '.join(SYSTEMS)}")
    found, notes = unwrap(
        path,
        read_weights(path),
        lambda state: _fitted(system, state, num_heads, grid, settings or {}),
        lambda state: _is_known(system, state),
    )
    return replace(found, notes=notes + found.notes)


def _fitted(
    system: str, state: State, num_heads: int | None, grid: tuple[int, int] | None, settings: OfficialConfig
) -> Imported:
    """One set of weights in any layout of a system. Raises WeightsError."""
    try:
        official, heads_of_layout = unified(system, state)
        held = [p for p in SYSTEMS[system].positions if p.official in official]
        lies = grid if any(not positions.is_square(official[positions.official]) for positions in held) else None
        told = with_grid(settings) | {
            name: x for name, x in (("num_heads", num_heads or heads_of_layout), ("grid", lies)) if x is not None
        }
        return resized(map_official(system, official, told), grid)
    except NonFinite as error:  # by the file's own names, where its layout has others
        raise NonFinite(
            f"NaN or infinite weights: {listed(names)}" if (names := nonfinite(state)) else str(error)
        ) from None
    except (RuntimeError, IndexError) as error:  # torch's own words on tensors of an unforeseen shape
        raise WeightsError(f"its shapes fit no layout of {system} ({str(error).splitlines()[0]})") from None


def _is_known(system: str, state: State) -> bool:
    """Whether weights are a system's, whole or not."""
    try:
        return SYSTEMS[system].matches(unified(system, state)[0])
    except (WeightsError, RuntimeError, IndexError):
        return False


def identify_system(official: Mapping[str, Tensor], told: OfficialConfig | None = None) -> str:
    """The system an officially named checkpoint belongs to; where two have the same names, what is told says which.
    Raises WeightsError.
    """
    found = [system for system in SYSTEMS.values() if system.matches(official)]
    if told:
        found = [system for system in found if system.matches_config(told)]
    if not found:
        raise WeightsError(f"a checkpoint of no known system; there are {', '.join(SYSTEMS)}")
    if len(found) > 1:
        names = " and ".join(system.name for system in found)
        raise WeightsError(
            f"a checkpoint whose weights {names} call alike; only the settings it was made with tell which"
        )
    return found[0].name


def map_official(name: str, official: Mapping[str, Tensor], told: OfficialConfig) -> Imported:
    """An officially named state in our terms; `told`: what stands in no shape.

    Names and shapes are checked before anything of the model's size is made. A student may stand without its teacher and
    queue, as a file does that was stripped for use, or was trained without one (ALBEF's `distill: False`), but not beside a
    part of them. Raises WeightsError.
    """
    system = SYSTEMS[name]
    arguments, task = {**system.infer(official, told), **told.get("arguments", {})}, system.task(official)
    names = system.names(arguments, task)
    if names.teacher_names and not any(name in official for name in names.teacher_names):
        names = names.without_teacher
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in official.items()}
    state = names.from_official(state)
    with torch.device("meta"):
        step = system.build(arguments, task, state)
    try:
        check_fit(step, state, f"this {name} checkpoint")
    except WeightsError as error:
        absent = {n: tensor for n, tensor in named_weights(step).items() if n not in state}
        theirs = f"; in the official names: {listed(names.to_official(absent))}" if absent else ""
        raise WeightsError(f"{error}{theirs}") from None
    twice = {name: f"the same weight as {twin}" for name, twin in names.tied.items()}
    dead = {name: why for name, why in (*names.ignored.items(), *twice.items()) if name in official}
    left = {name: tensor for name, tensor in official.items() if name in names.ignored}
    notes = [
        f"{n}: computed from its weight norm" for n in names.normed if n not in official and names.ours[n] in state
    ]
    return Imported(name, task, arguments, state, dead, names, left, notes)


def resized(imported: Imported, grid: tuple[int, int] | None) -> Imported:
    """The same checkpoint with its position grid fitted to other image sizes; None leaves it. Raises WeightsError."""
    if grid is None or grid == imported.arguments.get("grid"):
        return imported
    positions = [
        (name, positions)
        for positions in SYSTEMS[imported.system].positions
        for name in imported.state
        if name.endswith(positions.ours)  # a momentum model has positions of its own
    ]
    if not positions:
        raise WeightsError(f"{imported.system} has no position grid to resize; leave --grid out")
    try:
        fitted = {name: p.fit(imported.state[name], imported.arguments["grid"], grid) for name, p in positions}
    except ValueError as error:
        raise WeightsError(f"positions cannot be resized: {error}") from None
    return replace(imported, arguments=imported.arguments | {"grid": grid}, state=imported.state | fitted)
