"""Settings of an exported model that its weight shapes do not show: written beside or into the file, and read again.

A .safetensors file holds them in its metadata; beside a file in PyTorch's format, which official code loads as it is,
lies FILE.config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diptych.checkpoints.adapter import config_of
from diptych.checkpoints.huggingface.folder import read_json_object
from diptych.checkpoints.official_config import ARGUMENTS
from diptych.checkpoints.read import WeightsError
from diptych.data.sources.base import DataError
from diptych.data.sources.paths import data_in_json
from diptych.inference.saved_model import ModelSettings
from diptych.models.configs import RegionModel
from diptych.models.importing import ADAPTERS, constructor_arguments

METADATA = "diptych"
"""The key of a .safetensors file's metadata that holds the settings as JSON."""
SUFFIX = ".config.json"
NOT_INFERRED = ("grid", "schedule", "patch_sizes", "text_length")
"""Settings besides numbers of attention heads that shapes alone may not determine."""


def exported_settings(saved: ModelSettings) -> dict[str, Any]:
    """All arguments of a model, and mean and std of its images, as `diptych import` reads them."""
    settings: dict[str, Any] = {ARGUMENTS: vars(saved.model)}
    if not isinstance(saved.model, RegionModel):
        settings |= {"mean": saved.images.mean, "std": saved.images.std}
    return settings


def settings_file(file: Path) -> Path:
    """The file beside exported weights that holds their settings."""
    return file.with_name(file.name + SUFFIX)


def read_exported_settings(file: Path) -> tuple[str, dict[str, Any]] | None:
    """The settings that `export` wrote with a file, and their place for messages; None if there are none.

    Raises:
        WeightsError: they are not a JSON object.
    """
    if settings_file(file).is_file():
        return str(settings_file(file)), read_json_object(settings_file(file))
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError, RuntimeError):
        return None  # reported when its weights are read
    if text is None:
        return None
    where = f"{file}, metadata {METADATA!r}"
    try:
        settings = data_in_json(text, Path(where))
    except DataError as error:
        raise WeightsError(str(error)) from None
    if not isinstance(settings, dict):
        raise WeightsError(f"{where}: holds a {type(settings).__name__}; expected an object of keys and values")
    return where, settings


def settings_beyond_weights(system: str, state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments that an import of the weights alone would lack, or assume with other values.

    Args:
        state: the weights under official names.
    """
    config_class = ADAPTERS[system].config_class
    own = vars(config_of(config_class, arguments))
    heads = [name for name in own if name.endswith("heads")]
    for names in ([], heads, [*heads, *NOT_INFERRED]):
        stated = {name: own[name] for name in names if name in own}
        try:
            inferred = constructor_arguments(system, state, {ARGUMENTS: stated})
        except WeightsError:
            continue
        assumed = {field.name: field.default for field in fields(config_class)} | inferred
        return {name: value for name, value in own.items() if name in stated or assumed[name] != value}
    return own
