"""Import of official checkpoints: a file, in any supported layout, to our weight names and constructor arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diptych.checkpoints.adapter import (
    CheckpointAdapter,
    State,
    config_of,
    explicit_arguments,
    has_prefix,
    split_teacher,
)
from diptych.checkpoints.huggingface.folder import load_folder_state_dicts
from diptych.checkpoints.mapping import KeyMapping
from diptych.checkpoints.official_config import ARGUMENTS, OfficialConfig, RecordedConfig, check_fixed
from diptych.checkpoints.read import NonFinite, WeightsError, nonfinite
from diptych.checkpoints.strict import check_fit, differences_beyond_shapes, load_strict
from diptych.checkpoints.wrappers import unwrap
from diptych.models.albef import checkpoint as albef
from diptych.models.beit3 import checkpoint as beit3
from diptych.models.blip import checkpoint as blip
from diptych.models.clip import checkpoint as clip
from diptych.models.clip import resnet_checkpoint
from diptych.models.coca import checkpoint as coca
from diptych.models.crossvit import checkpoint as crossvit
from diptych.models.huggingface.layouts import to_official_names
from diptych.models.mae import checkpoint as mae
from diptych.models.scan import checkpoint as scan
from diptych.models.vilbert import checkpoint as vilbert
from diptych.models.vilt import checkpoint as vilt
from diptych.models.vit import checkpoint as vit
from diptych.models.vlmo import checkpoint as vlmo
from diptych.models.vsepp import checkpoint as vsepp
from diptych.utils.state_dict import listed, named_weights, without_weights

ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        vit.ADAPTER, vlmo.ADAPTER, vilt.ADAPTER, vsepp.ADAPTER, scan.ADAPTER, vilbert.ADAPTER, crossvit.ADAPTER,
        mae.ADAPTER, beit3.ADAPTER, albef.ADAPTER, blip.ADAPTER, clip.ADAPTER, clip.OPEN_CLIP,
        resnet_checkpoint.ADAPTER, coca.ADAPTER,
    )
}  # fmt: skip
"""The adapters of the systems whose official checkpoints can be imported, by name."""


@dataclass(frozen=True)
class OfficialCheckpoint:
    """An official checkpoint under our names.

    `task`: what it was trained for: pretraining, vqa, retrieval, nlvr2, classification, or encoder if it has no head.
    `arguments`: the constructor arguments of the model. `state`: every weight of the training step that `build` makes.
    `ignored`: official names that were not loaded → the reason. `names`: the table of official names and ours.
    """

    system: str
    task: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    ignored: dict[str, str]
    names: KeyMapping
    ignored_tensors: dict[str, Tensor] = field(default_factory=dict)  # the ignored weights, for export
    notes: list[str] = field(default_factory=list)  # prefixes that were removed, and keys that were not read

    @property
    def heads(self) -> list[str]:
        """The heads of the checkpoint: "heads.itm", "head", "model.head" …"""
        student, _ = split_teacher(self.state)
        modules = {".".join(name.split(".")[: 2 if name.startswith("heads.") else 1]) for name in student}
        classifier = {"model.head"} if "model.head.weight" in student else set()
        return sorted(modules - {"model"} | classifier)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The pre-training heads of the checkpoint, without "heads.": itm, mlm …"""
        return tuple(name.removeprefix("heads.") for name in self.heads if name.startswith("heads."))

    def build(self) -> nn.Module:
        """The training step of the checkpoint, with its weights loaded."""
        step = ADAPTERS[self.system].build(self.arguments, self.task, self.state)
        load_strict(step, self.state, f"this {self.system} checkpoint")
        return step


def load_official(
    system: str,
    path: Path,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    settings: OfficialConfig | None = None,
    task: str = "",
) -> OfficialCheckpoint:
    """Reads a checkpoint in the official layout of a system, or in Hugging Face's, timm's or JAX's where it has one.

    Args:
        num_heads: attention heads of every encoder whose number `settings` do not state.
        grid: rows and columns of the position grid. A square number of positions is read as a square grid and resized
            to `grid` by the system's own rule; any other number must have the shape of `grid`.
        settings: what cannot be inferred from shapes, under the keys of the official code (ViLBERT's schedule,
            open_clip's config), or constructor arguments under "arguments". A RecordedConfig records what was used.
        task: the one to import the model for, of a file that has the heads of several tasks.

    Raises:
        WeightsError: one line that names the file and the weights.
    """
    if system not in ADAPTERS:
        raise WeightsError(f"no system {system!r} to import; there are {', '.join(ADAPTERS)}")
    config = RecordedConfig.of(settings or {})
    imported, notes = unwrap(
        path,
        load_folder_state_dicts(path),
        lambda state: _import_state(system, state, num_heads, grid, config, task),
        lambda state: _is_known(system, state),
    )
    return replace(imported, notes=notes + imported.notes)


def _import_state(
    system: str,
    state: State,
    num_heads: int | None,
    grid: tuple[int, int] | None,
    settings: RecordedConfig,
    task: str,
) -> OfficialCheckpoint:
    """Imports one set of weights, in any layout of a system. Raises WeightsError."""
    try:
        official, heads_of_layout = to_official_names(system, state)
        positions = [p for p in ADAPTERS[system].positions if p.official in official]
        own_grid = grid if any(not p.is_square(official[p.official]) for p in positions) else None
        options = {"num_heads": num_heads or heads_of_layout, "grid": own_grid}
        config = settings | {key: value for key, value in options.items() if value is not None}
        imported = map_official(system, official, config, task)
        if num_heads:
            _check_heads_used(imported.arguments, num_heads)
        return resize_grid(imported, grid)
    except NonFinite as error:  # named as in the file, whose layout may have other names
        raise NonFinite(
            f"NaN or infinite weights: {listed(names)}" if (names := nonfinite(state)) else str(error)
        ) from None
    except (RuntimeError, IndexError) as error:  # torch's errors about tensors of unexpected shapes
        raise WeightsError(f"its shapes fit no layout of {system} ({str(error).splitlines()[0]})") from None


def _check_heads_used(arguments: Mapping[str, Any], num_heads: int) -> None:
    """Raises WeightsError if the config states all numbers of attention heads, and none is `num_heads`."""
    heads = {name: value for name, value in arguments.items() if name.endswith("heads")}
    if num_heads not in [n for value in heads.values() for n in (value if isinstance(value, tuple) else (value,))]:
        numbers = ", ".join(f"{name} {value}" for name, value in heads.items())
        raise WeightsError(f"the config states {numbers}, but --num_heads is {num_heads}; leave --num_heads out")


def _is_known(system: str, state: State) -> bool:
    """Whether weights belong to a system, even if some are missing."""
    try:
        return ADAPTERS[system].matches(to_official_names(system, state)[0])
    except (WeightsError, RuntimeError, IndexError):
        return False


def identify_system(official: Mapping[str, Tensor], config: OfficialConfig | None = None) -> str:
    """The system of a checkpoint under official names; `config` decides between systems with the same names.

    Raises:
        WeightsError: no system matches, or several do.
    """
    matches = [system for system in ADAPTERS.values() if system.matches(official)]
    if config:
        matches = [system for system in matches if system.matches_config(config)]
    if not matches:
        raise WeightsError(f"a checkpoint of no known system; there are {', '.join(ADAPTERS)}")
    if len(matches) > 1:
        names = " and ".join(system.name for system in matches)
        raise WeightsError(f"a checkpoint with weight names of both {names}; give the config that it was trained with")
    return matches[0].name


def constructor_arguments(name: str, official: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of a system for a state under official names.

    Those that the config states under "arguments" apply before the others are inferred.

    Raises:
        WeightsError: an argument can neither be inferred nor is stated, or it contradicts the weights.
    """
    system = ADAPTERS[name]
    check_fixed(config, system.fixed)
    explicit = explicit_arguments(config, system.config_class)
    inferred = system.infer(official, RecordedConfig.of(config) | {ARGUMENTS: explicit})
    arguments = {**inferred, **explicit}
    wrong = next((key for key in explicit if key in inferred and inferred[key] != explicit[key]), None)
    if wrong:
        own, theirs = (config_of(system.config_class, values) for values in (inferred, arguments))
        hidden = differences_beyond_shapes(own, theirs)
        for key, value in explicit.items():
            if key in inferred and inferred[key] != value and key not in hidden:
                raise WeightsError(f"config: arguments.{key} is {value}, but in the weights it is {inferred[key]}")
    return arguments


def map_official(
    name: str, official: Mapping[str, Tensor], config: OfficialConfig, only_task: str = ""
) -> OfficialCheckpoint:
    """A state under official names, translated to ours.

    Names and shapes are checked before tensors of the model's size are allocated. The momentum teacher and the queue
    may be absent, as in a file that was stripped or trained without them (ALBEF's `distill: False`), but only both
    together.

    Args:
        config: settings that cannot be inferred from shapes.
        only_task: the one of its tasks to import a file for; "": all that it was trained for.

    Raises:
        WeightsError: the weights do not fit the system; the message names them.
    """
    system = ADAPTERS[name]
    arguments = constructor_arguments(name, official, config)
    task = _one_of_its_tasks(system, official, only_task) if only_task else system.task(official)
    names = system.names(arguments, task)
    if names.teacher_names and not any(name in official for name in names.teacher_names):
        names = names.without_teacher
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in official.items()}
    state = names.from_official(state)
    with without_weights():
        step = system.build(arguments, task, state)
    try:
        check_fit(step, state, f"this {name} checkpoint")
    except WeightsError as error:
        missing = {n: tensor for n, tensor in named_weights(step).items() if n not in state}
        theirs = f"; in the official names: {listed(names.to_official(missing))}" if missing else ""
        raise WeightsError(f"{error}{theirs}") from None
    tied = {name: f"the same weight as {other}" for name, other in names.tied.items()}
    ignored = {name: reason for name, reason in (*names.ignored.items(), *tied.items()) if name in official}
    ignored_tensors = {name: tensor for name, tensor in official.items() if name in names.ignored}
    notes = [
        f"{n}: computed from its weight norm"
        for n in names.weight_normed
        if n not in official and names.ours[n] in state
    ]
    return OfficialCheckpoint(name, task, arguments, state, ignored, names, ignored_tensors, notes)


def resize_grid(imported: OfficialCheckpoint, grid: tuple[int, int] | None) -> OfficialCheckpoint:
    """The checkpoint with its positions resized to `grid` (rows, columns); None: unchanged. Raises WeightsError."""
    if grid is None or grid == imported.arguments.get("grid"):
        return imported
    positions = [
        (name, positions)
        for positions in ADAPTERS[imported.system].positions
        for name in imported.state
        if name.endswith(positions.ours)  # of the student and of the momentum teacher
    ]
    if not positions:
        raise WeightsError(f"{imported.system} has no position grid to resize; leave --grid out")
    try:
        refitted = {name: p.resized(imported.state[name], imported.arguments["grid"], grid) for name, p in positions}
    except ValueError as error:
        raise WeightsError(f"positions cannot be resized: {error}") from None
    return replace(imported, arguments=imported.arguments | {"grid": grid}, state=imported.state | refitted)


def _one_of_its_tasks(system: CheckpointAdapter, official: State, task: str) -> str:
    """`task`, checked. Raises WeightsError if the system's files have no such heads, or this one has not."""
    heads = system.heads_of_tasks
    if task not in heads:
        known = f"expected one of {', '.join(heads)}" if heads else "its files have the heads of one task: leave it out"
        raise WeightsError(f"--task {task}: {known}")
    if not has_prefix(official, heads[task]):
        present = [name for name, prefix in heads.items() if has_prefix(official, prefix)]
        known = f"it has those of {', '.join(present)}" if present else "leave --task out"
        raise WeightsError(f"--task {task}: the file has no weights {heads[task]}*, the head of {task}; {known}")
    return task
