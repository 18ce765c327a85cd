"""Whether a run's settings fit the weights beside them: found by shapes, before anything of their size is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diptych.checkpoints.mapping import within
from diptych.checkpoints.strict import check_fit
from diptych.config.run import Finetune, Pretrain
from diptych.runs.embedders import install_embedders
from diptych.runs.run_folder import RunError

WEIGHTS = "model.safetensors"
SPARE = 2**26
"""Numbers that a model may hold before its embedders are exchanged, and its weights lack: BERT's word vectors and more."""
LARGER, USUAL = 16, 2**20
"""Pictures may have so many times the area of a model's grid of patches, or so many pixels."""


def shapes(folder: Path) -> dict[str, Tensor]:
    """The weights of a run on the meta device, from the header of their file. Raises RunError where there is none to read."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise RunError(f"{folder}: no {WEIGHTS} there yet; start its command again to finish it")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: torch.float32 if "F" in part.get_dtype() else torch.int64 for name, part in slices.items()}
            return {n: torch.empty(part.get_shape(), dtype=kinds[n], device="meta") for n, part in slices.items()}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); train or import it again") from None


def check_model(folder: Path, run: Pretrain | Finetune) -> None:
    """Raises RunError or WeightsError unless the model that run.json describes has the weights of the folder's file."""
    held = shapes(folder)
    check_depth(folder, vars(run.model), len(held))
    _check_pictures(folder, run)
    with torch.device("meta"):
        model: Any = run.model.build()
        size = sum(t.numel() for t in model.state_dict().values())
        if size > SPARE + 2 * sum(t.numel() for t in held.values()):
            raise RunError(
                f"{folder}: run.json describes a model of {size:,} numbers, {WEIGHTS} holds {sum(t.numel() for t in held.values()):,}: "
                "they are not of one run; train or import it again"
            )
        install_embedders(model, run)
    check_fit(model, within(held, "model."), f"{folder / WEIGHTS}, as run.json describes the model,")


def check_module(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Raises WeightsError, RunError unless the module that `build` makes, heads and all, has the weights of the folder's file."""
    held = shapes(folder)
    with torch.device("meta"):
        module = build()
    check_fit(module, held, str(folder / WEIGHTS))


def check_depth(folder: Path, arguments: Mapping[str, Any], tensors: int) -> None:
    """Raises RunError where a model of these arguments has more layers than the file of its weights has `tensors`."""
    layers = sum(value for name, value in arguments.items() if name.endswith("depth") and isinstance(value, int))
    layers += sum(sum(stage) for stage in arguments.get("stages", ()))
    if layers > tensors:
        raise RunError(
            f"{folder}: run.json describes a model of {layers} layers, {WEIGHTS} holds {tensors} tensors: they are not of one run"
        )


def _check_pictures(folder: Path, run: Pretrain | Finetune) -> None:
    """Raises RunError where pictures are far larger than the grid of patches that the model has positions for."""
    grid, patch = getattr(run.model, "grid", None), getattr(run.model, "patch_size", None)
    if run.embedders.image != "own" or not grid or not patch:
        return
    area, known = run.images.shorter_side**2, grid[0] * grid[1] * patch**2
    if area > max(LARGER * known, USUAL):
        raise RunError(
            f"{folder}: images.shorter_side is {run.images.shorter_side}, whose square has {area / known:.0f} times the area of model.grid, "
            f"{grid} patches of {patch}: at most {LARGER} times is read"
        )
