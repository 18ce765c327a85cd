"""Whether a config.json that was exported holds every setting of the model, as an import of it would read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from diptych.checkpoints.adapter import Arguments, State, config_of
from diptych.checkpoints.huggingface.folder import CONFIG_FILE
from diptych.checkpoints.read import WeightsError
from diptych.models.huggingface.config import read_config
from diptych.models.importing import ADAPTERS, constructor_arguments

PUBLISHED_LOSS = {"vilt": {"text_eps": (1e-12, 1e-6)}}
"""By system: a published setting that transformers' class has with another value, and both values.

Exports of the official ViLT in transformers have one eps for all norms.
"""


def check_expressible(system: str, arguments: Arguments, config: Mapping[str, Any], official: State) -> list[str]:
    """Checks that the model of a config.json has the settings of the exported model.

    Args:
        arguments: the constructor arguments of the exported model.
        config: the keys and values of config.json.
        official: its weights under official names.

    Returns:
        One note for each setting of `PUBLISHED_LOSS` that is lost.

    Raises:
        WeightsError: transformers' config cannot express a setting, which the message names.
    """
    config_class = ADAPTERS[system].config_class
    read = read_config(system, config, CONFIG_FILE)
    theirs = config_of(config_class, constructor_arguments(system, official, read.official_config))
    own, notes = config_of(config_class, arguments), []
    for name in (field.name for field in fields(config_class)):
        value, other = _effective(own, name), _effective(theirs, name)
        if value == other:
            continue
        if PUBLISHED_LOSS.get(system, {}).get(name) != (value, other):
            raise WeightsError(
                f"transformers' config cannot express {name} {value!r}: its class would compute with {other!r}; "
                "export with --to official or --to safetensors"
            )
        notes.append(f"{name} {value!r} (transformers' class computes with {other!r}: outputs differ slightly)")
    return notes


def _effective(config: Any, name: str) -> Any:
    """The value of a setting; an empty text activation is the image tower's."""
    value = getattr(config, name)
    return config.activation if name == "text_activation" and not value else value
