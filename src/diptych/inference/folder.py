"""The folder of a saved model: config.json, vocabulary and weights, written and read.

Weights are compared with the model that config.json describes by their shapes, before memory is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import diptych
from diptych.checkpoints import digests
from diptych.checkpoints.digests import Damaged
from diptych.checkpoints.mapping import strip_prefix
from diptych.checkpoints.strict import check_fit, load_strict
from diptych.config.serialization import to_json
from diptych.data.tokenizers.tokenizer import vocabulary_file_name, vocabulary_in
from diptych.inference.embedders import input_embeddings
from diptych.inference.saved_model import CONFIG_FILE, MODEL_TYPE, ModelSettings, RunError, SavedModel
from diptych.utils.io import atomic_write, with_digest
from diptych.utils.state_dict import without_weights

WEIGHTS = "model.safetensors"
IGNORED_WEIGHTS = "ignored.safetensors"
"""The official weights that an imported model does not use (teacher, queue, ...), which `export` writes back."""
SIZE_MARGIN = 2**26
"""Parameters beyond twice those of the weights file with which a model is refused before weights are compared."""
MAX_AREA_RATIO, MIN_AREA_LIMIT = 16, 2**20
"""Images may have so many times the area of a model's patch grid, or so many pixels if that is more."""

Settings = TypeVar("Settings", bound=ModelSettings)


def with_vocabulary_in(out: Path, settings: Settings) -> Settings:
    """The settings with a copy of their vocabulary file in the folder `out`, under a name with its digest.

    Raises:
        DataError: the vocabulary file cannot be read.
        WriteError: the copy cannot be written.
    """
    if not settings.vocabulary:
        return settings
    content = vocabulary_in(Path(settings.vocabulary))
    name = vocabulary_file_name(Path(settings.vocabulary), content)
    with atomic_write(out / name) as path:
        path.write_bytes(content)
    return replace(settings, vocabulary=name)


def write_config(out: Path, saved: SavedModel) -> None:
    """Writes config.json, and a copy of the vocabulary file, if the model has one of its own.

    Raises:
        DataError: the vocabulary file cannot be read.
        WriteError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = {"model_type": MODEL_TYPE, "version": diptych.__version__, **to_json(with_vocabulary_in(out, saved))}
    with atomic_write(out / CONFIG_FILE) as path:
        path.write_text(json.dumps(with_digest(record), indent=1) + "\n", encoding="utf-8")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a saved model (model.safetensors). Raises RunError if there are none yet, or the file is damaged."""
    path = _weights_file(folder)
    try:
        return digests.read(path)[0]
    except Damaged as error:
        raise RunError(f"{error}; train or import it again") from None


def _weights_file(folder: Path) -> Path:
    """The path of a model's weights. Raises RunError if there are none yet."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise RunError(f"{folder}: no {WEIGHTS} there yet; start its command again to finish it")
    return path


def load_weights(module: nn.Module, folder: Path) -> nn.Module:
    """`module` with all weights of the folder; nothing is loaded if one is missing or does not fit."""
    load_strict(module, read_weights(folder), str(folder / WEIGHTS))
    return module


def weight_shapes(folder: Path) -> dict[str, Tensor]:
    """A model's weights on the meta device, by the file's header. Raises RunError if the file is absent or damaged."""
    path = _weights_file(folder)
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            dtypes = {name: torch.float32 if "F" in part.get_dtype() else torch.int64 for name, part in slices.items()}
            return {n: torch.empty(part.get_shape(), dtype=dtypes[n], device="meta") for n, part in slices.items()}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); train or import it again") from None


def check_model(folder: Path, settings: ModelSettings) -> None:
    """Raises RunError or WeightsError unless the weights in the folder fit the model that config.json describes."""
    weights = weight_shapes(folder)
    size_of_file = sum(t.numel() for t in weights.values())
    check_depth(folder, vars(settings.model), len(weights))
    _check_image_size(folder, settings)
    with without_weights():
        model: Any = settings.model.build(input_embeddings(settings))
        size = sum(t.numel() for t in model.state_dict().values())
        if size > SIZE_MARGIN + 2 * size_of_file:
            raise RunError(
                f"{folder}: config.json describes a model of {size:,} parameters, but {WEIGHTS} has {size_of_file:,}: "
                "they are not of the same run; train or import it again"
            )
    check_fit(model, strip_prefix(weights, "model."), f"{folder / WEIGHTS}, as config.json describes the model,")


def check_module(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Raises WeightsError or RunError unless the folder's weights fit the module that `build` returns, heads too."""
    weights = weight_shapes(folder)
    with without_weights():
        module = build()
    check_fit(module, weights, str(folder / WEIGHTS))


def check_depth(folder: Path, arguments: Mapping[str, Any], tensors: int) -> None:
    """Raises RunError if a model of these constructor arguments has more layers than its weights file has `tensors`."""
    layers = sum(value for name, value in arguments.items() if name.endswith("depth") and isinstance(value, int))
    layers += sum(sum(stage) for stage in arguments.get("stages", ())) + sum(arguments.get("depths", ()))
    if layers > tensors:
        raise RunError(
            f"{folder}: config.json describes a model of {layers} layers, but {WEIGHTS} has {tensors} tensors: they are "
            "not of the same run; train or import it again"
        )


def _check_image_size(folder: Path, settings: ModelSettings) -> None:
    """Raises RunError if images are far larger than the patch grid that the model has position embeddings for."""
    grid, patch = getattr(settings.model, "grid", None), getattr(settings.model, "patch_size", None)
    if settings.embedders.image != "own" or not grid or not patch:
        return
    side, grid_area = settings.images.shorter_side, grid[0] * grid[1] * patch**2
    if side**2 > max(MAX_AREA_RATIO * grid_area, MIN_AREA_LIMIT):
        raise RunError(
            f"{folder}: images.shorter_side is {side}, whose square has {side**2 / grid_area:.0f} times the area of "
            f"model.grid, {grid} patches of {patch} pixels; expected at most {MAX_AREA_RATIO} times"
        )
