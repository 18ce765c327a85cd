"""The adapter between a system's official checkpoints and its model here, and helpers to infer sizes from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from torch import Tensor, nn

from diptych.checkpoints.mapping import KeyMapping, strip_prefix
from diptych.checkpoints.official_config import ARGUMENTS, OfficialConfig, stated
from diptych.checkpoints.positions import Positions
from diptych.checkpoints.read import WeightsError
from diptych.config.spelling import suggest_name
from diptych.config.validation import check_fields, preview

State = Mapping[str, Tensor]
Arguments = Mapping[str, Any]
"""Constructor arguments of a model, as plain values."""
Exported = tuple[dict[str, Any], dict[str, Tensor], list[str]]
"""For Hugging Face: config.json, the weights under their names there, and one note for each part that was left out."""

IMAGE_SIZE_KEYS = ("img_size", "image_size_of_pos_embed", "image_size")
"""Keys under which configs store the image size that the position grid belongs to."""


@dataclass(frozen=True)
class CheckpointAdapter:
    """How the official checkpoints of one system are recognised, translated and built.

    `matches`, `task` and `infer` take a state under official names; `task` and `infer` raise WeightsError for a state
    that they cannot interpret. `names` and `build` depend on their results alone, so that a run that was trained here
    can be exported too.
    """

    name: str
    # The settings of the model; its fields are the constructor arguments.
    config_class: type[Any]
    # Whether a state is a checkpoint of this system.
    matches: Callable[[State], bool]
    # The task that it was trained for: pretraining, vqa, retrieval …; "encoder" if it has no head.
    task: Callable[[State], str]
    # The constructor arguments of the model.
    infer: Callable[[State, OfficialConfig], dict[str, Any]]
    # (arguments, task): official names to ours; it may include heads that a given state lacks.
    names: Callable[[Arguments, str], KeyMapping]
    # (arguments, task, state under our names): the training step, or the model under "model" if it has no head.
    build: Callable[[Arguments, str, State], nn.Module]
    # (task, names of heads): the objectives that pre-training heads were trained with.
    losses: Callable[[str, tuple[str, ...]], tuple[str, ...]] = lambda task, heads: losses_of_heads(heads)
    # Whether a config is this system's: tells apart systems whose weights have the same names.
    matches_config: Callable[[OfficialConfig], bool] = lambda config: True
    # Position embeddings that may occur; a checkpoint has one of them.
    positions: tuple[Positions, ...] = ()
    # The key under which the official file stores its weights; "" for the top level.
    model_prefix: str = ""
    # Task → the official prefix of its head, where a file that has several heads can be imported for one of its tasks.
    heads_of_tasks: Mapping[str, str] = field(default_factory=dict)
    # Keys of the official config that change the outputs, and their values that the model supports.
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


HEADS_WITH_OTHER_NAMES = {"regions": "masked_regions"}
"""Pre-training heads that are not called as the objective that trains them."""


def losses_of_heads(heads: tuple[str, ...]) -> tuple[str, ...]:
    """The objectives that train the pre-training heads, of which ITC may have several."""
    losses = ("itc" if name.startswith("itc") else HEADS_WITH_OTHER_NAMES.get(name, name) for name in heads)
    return tuple(dict.fromkeys(losses))


def split_teacher(state: State) -> tuple[State, bool]:
    """The student's weights of a state under our names, and whether the state has a momentum teacher as well."""
    has_teacher = not any(name.startswith("model.") for name in state)
    return (strip_prefix(state, "student."), True) if has_teacher else (state, False)


def shape_of(state: State, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a weight. Raises WeightsError if it is missing or has another number of dimensions."""
    if name not in state:
        raise WeightsError(f"missing weights: {name}; is this another model's checkpoint?")
    if state[name].dim() != dimensions or not state[name].numel():
        raise WeightsError(f"{name} is {tuple(state[name].shape)}; expected {dimensions} dimensions, none of them 0")
    return tuple(state[name].shape)


def has_prefix(state: State, prefix: str) -> bool:
    """Whether any name begins with `prefix`: true for a module that lacks some of its weights, too."""
    return any(name.startswith(prefix) for name in state)


def count_layers(state: State, stem: str, weight: str) -> int:
    """The number of layers "{stem}.N" that have any weight of the module to which `weight` ("attn.qkv.weight") belongs.

    A layer that lacks `weight` but has the module's bias counts, so that loading reports the weight as missing.
    """
    module = weight.rpartition(".")[0] + "."
    inside = (name[len(stem) + 1 :].partition(".") for name in state if name.startswith(f"{stem}."))
    return len({number for number, _, rest in inside if rest.startswith(module)})


def task_by_prefix(state: State, tasks: Mapping[str, str]) -> str:
    """The task of the first prefix in `tasks` (prefix → task) that occurs in the state; "encoder" if none does."""
    return next((task for prefix, task in tasks.items() if has_prefix(state, prefix)), "encoder")


def infer_num_heads(dim: int, config: OfficialConfig, argument: str, *keys: str, published: int | None = None) -> int:
    """The number of attention heads: as the config states it, else `published`, else one for every 64 features.

    Args:
        argument: the constructor argument, which a config may state under "arguments".
        keys: official keys that state it (`official_config.stated`).

    Raises:
        WeightsError: the number is neither stated nor published, or does not divide `dim`.
    """
    heads = stated(config, argument, *keys)
    if heads is None:
        heads = published if published or dim % 64 else dim // 64
    advice = f'state it in --config, as {{"arguments": {{"{argument}": N}}}}'
    if "num_heads" in keys:
        advice += ", or give --num_heads N if all encoders have N heads"
    if heads is None:
        raise WeightsError(f"{argument} cannot be inferred: width {dim} is not a multiple of 64; {advice}")
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise WeightsError(f"{argument}, the number of attention heads, is {preview(heads)}; expected an integer")
    if heads < 1 or dim % heads:
        raise WeightsError(f"{argument}: width {dim} does not divide into {heads} heads; {advice}")
    return heads


WIDE_HEAD_COUNTS = {1280: 16, 1408: 16, 1664: 16, 1792: 16}
"""Width to number of heads of the published image encoders whose heads are wider than 64: ViT-H, -g, -G and -e."""


def infer_image_num_heads(dim: int, config: OfficialConfig, argument: str, *keys: str) -> int:
    """The number of attention heads of an image encoder, by default the published one. Raises WeightsError."""
    return infer_num_heads(dim, config, argument, *keys, published=WIDE_HEAD_COUNTS.get(dim))


def infer_grid(cells: int, grid: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """Rows and columns of a grid of `cells` positions: `grid`, or a square if it is None. Raises WeightsError.

    Args:
        name: the weight, for the message.
    """
    side = math.isqrt(cells)
    rows, columns = grid or (side, side)
    if rows * columns != cells:
        reason = f"{rows} x {columns} is {rows * columns}" if grid else "that is not a square number"
        raise WeightsError(f"{name} has {cells} cells, but {reason}; give --grid ROWSxCOLUMNS of {cells} cells")
    return rows, columns


def config_grid(config: OfficialConfig, patch_size: int | None = None) -> tuple[int, int] | None:
    """The position grid (rows, columns) that a config states, by its images if they are not square; else None.

    Args:
        patch_size: of the weights, for a config that states that of its images nowhere.

    Raises:
        WeightsError: image size and patch size define no grid.
    """
    if (grid := stated(config, "grid")) is not None:
        return grid
    for part in (config.get("vision"), config.get("vision_cfg"), config):
        if not isinstance(part, Mapping):
            continue
        size = next((part[name] for name in IMAGE_SIZE_KEYS if name in part), None)
        patch = part.get("patch_size", patch_size)
        if not isinstance(size, list) or isinstance(patch, list):
            continue
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in (*size, patch)):
            raise WeightsError(
                f"config: image size {size} and patch size {patch!r} do not define a position grid; "
                "expected [height, width] and one integer"
            )
        return size[0] // patch, size[1] // patch
    return config.get("grid")


def square_side(grid: Sequence[int], name: str) -> int:
    """The side of a square position grid. Raises WeightsError if it is not square.

    Args:
        name: the Hugging Face model, which supports square images only.
    """
    rows, columns = grid
    if rows != columns:
        raise WeightsError(
            f"Hugging Face's {name} supports square images only; this model has {rows} × {columns} patches"
        )
    return rows


Config = TypeVar("Config")


def config_of(config_class: type[Config], arguments: Arguments) -> Config:
    """The model config with the settings that a checkpoint was made with; lists, as JSON has them, become tuples.

    Raises WeightsError that names the setting where one is unknown, of another type or out of its range.
    """
    try:
        return config_class(**{name: _with_tuples(value) for name, value in arguments.items()})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"this checkpoint's settings make no {config_class.__name__}: {error}") from None


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def explicit_arguments(config: OfficialConfig, config_class: type[Any]) -> dict[str, Any]:
    """The constructor arguments that a config states under "arguments".

    Raises:
        WeightsError: the model has no argument of that name, or the value is out of its range.
    """
    arguments = config.get(ARGUMENTS, {})
    if not isinstance(arguments, Mapping):
        raise WeightsError(f"config: {ARGUMENTS} is {preview(arguments)}; expected an object of names and values")
    explicit = {name: _with_tuples(value) for name, value in arguments.items()}
    names = [field.name for field in fields(config_class)]
    for name in explicit:
        if name not in names:
            raise WeightsError(f"config: {ARGUMENTS}.{name}: the model has no such setting{suggest_name(name, names)}")
    try:
        check_fields(config_class, explicit, ARGUMENTS)
    except ValueError as error:
        raise WeightsError(f"config: {error}") from None
    return explicit
