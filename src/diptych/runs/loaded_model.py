"""A trained model without its training, as evaluation, captioning, filtering and the Python API take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from diptych.config.data import ImageSettings
from diptych.config.run import Finetune, Pretrain
from diptych.data.images.loading import ImageLoader
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.models.blip.checkpoint import without_temperature
from diptych.models.importing import ADAPTERS
from diptych.runs import build as building
from diptych.runs import finetune
from diptych.runs.check_weights import check_model, check_module
from diptych.runs.embedders import image_input, input_image_settings
from diptych.runs.feature_extractors import check_frozen_features
from diptych.runs.run_folder import load_run, read_run
from diptych.runs.tokenizer import tokenizer_of


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, its heads, its text tokenizer and its image preprocessing.

    `settings`: the settings that it was trained with. `facts`: what run.json records in addition (answers, classes,
    ...). `module`: model and heads with their weights, on `device`, in evaluation mode.
    """

    settings: Pretrain | Finetune
    facts: Mapping[str, Any]
    module: nn.Module
    device: torch.device

    @property
    def model(self) -> Any:
        """The model itself. Callers check which protocol it implements before they call one of its methods."""
        return self.module.get_submodule("model")

    @property
    def heads(self) -> nn.ModuleDict:
        """The heads of pre-training by name: itc, itm, mlm, ...; empty for a model of a task."""
        return cast(nn.ModuleDict, getattr(self.module, "heads", nn.ModuleDict()))

    @property
    def losses(self) -> frozenset[str]:
        """Names of the losses that the model was trained with."""
        return frozenset(cast(Mapping[str, float], getattr(self.module, "weights", {})))

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tokenizer. Raises RunError if the model reads no text, or its vocabulary is unknown."""
        return tokenizer_of(self.settings)

    @property
    def image_settings(self) -> ImageSettings:
        """The image preprocessing, without augmentation."""
        return replace(input_image_settings(self.settings), augment=False)

    @property
    def image_input(self) -> ImageSettings | ImageLoader:
        """How images are loaded for the model: as pixels, as features of a frozen network, or as detected regions."""
        return image_input(self.settings)


def load_model(folder: Path, device: torch.device) -> LoadedModel:
    """The trained model in a run folder, on `device`. Sizes are compared before memory is allocated.

    Raises:
        RunError, WeightsError: weights and run.json do not fit each other, or the frozen features have changed.
    """
    settings, facts = read_run(folder)
    check_frozen_features(settings, facts)
    check_model(folder, settings)
    check_module(folder, lambda: initial_module(settings, facts))
    module = load_run(initial_module(settings, facts), folder)
    return LoadedModel(settings, facts, module.to(device).eval(), device)


def initial_module(settings: Pretrain | Finetune, facts: Mapping[str, Any]) -> nn.Module:
    """The module of a run with initial weights. Raises RunError if its frozen features have changed since training."""
    check_frozen_features(settings, facts)
    if isinstance(settings, Pretrain):
        statistics = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        module = building.build(settings, statistics, guided=False)
        return without_temperature(module) if facts.get("task") == "matching" else module
    if settings.task == "nlvr2" and facts.get("system") in ADAPTERS:  # imported; no command trains it
        return ADAPTERS[facts["system"]].build(asdict(settings.model), "nlvr2", {})
    return finetune.build(settings, facts)
