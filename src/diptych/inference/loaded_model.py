"""A trained model without its training, as evaluation, captioning, filtering and the Python API take it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from diptych.config.data import ImageSettings
from diptych.data.images.loading import ImageLoader
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.inference.embedders import image_input, input_image_settings
from diptych.inference.saved_model import SavedModel
from diptych.inference.tokenizer import tokenizer_of
from diptych.models.configs import ImageOnlyModel
from diptych.modules.precision import CastWeights
from diptych.modules.tokens import packing


class ModelWithHeads(nn.Module):
    """A model with its pre-training heads; what each of them is applied to stands in the model and in the tasks."""

    def __init__(self, model: nn.Module, heads: nn.ModuleDict):
        super().__init__()
        self.model, self.heads = model, heads


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, its heads, its text tokenizer and its image preprocessing.

    `saved`: its config.json. `module`: the model and its heads with their weights, on `device`, in evaluation mode: a
    `ModelWithHeads`, or the module of a task. `folder`: where it lies; None if it was converted in memory.
    """

    saved: SavedModel
    module: nn.Module
    device: torch.device
    folder: Path | None = None

    @property
    def model(self) -> Any:
        """The model itself. Callers check which protocol it implements before they call one of its methods."""
        return self.module.get_submodule("model")

    @property
    def heads(self) -> nn.ModuleDict:
        """The heads of pre-training by name: itc, itm, mlm, ...; empty for a model of a task."""
        return cast(nn.ModuleDict, getattr(self.module, "heads", nn.ModuleDict()))

    @contextmanager
    def computing(self, bf16: bool) -> Iterator[None]:
        """Context of all computation: without gradients and padding, and with `bf16` in autocast, weights cast once."""
        device = self.device.type
        autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
        with torch.no_grad(), packing(), autocast, self._cast_weights.used(device):
            yield

    @cached_property
    def _cast_weights(self) -> CastWeights:
        return CastWeights(self.module)

    @property
    def losses(self) -> frozenset[str]:
        """Names of the losses that the model was trained with."""
        return frozenset(self.saved.losses)

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tokenizer. Raises RunError if the model reads no text, or its vocabulary is unknown."""
        return tokenizer_of(self.saved)

    @property
    def image_settings(self) -> ImageSettings:
        """The image preprocessing, without augmentation."""
        return replace(input_image_settings(self.saved), augment=False)

    @property
    def image_input(self) -> ImageSettings | ImageLoader:
        """How images are loaded for the model: as pixels, as features of a frozen network, or as detected regions."""
        return image_input(self.saved)


def model_digest(loaded: LoadedModel) -> str:
    """A digest of everything in a model that its outputs depend on: weights, settings, vocabulary, preprocessing."""
    reads_text = not isinstance(loaded.saved.model, ImageOnlyModel)
    described = (
        loaded.saved.model,  # heads, activations and eps do not show in the weights
        loaded.saved.losses,
        loaded.image_settings,
        loaded.saved.labels,
        loaded.saved.frozen_features,
        loaded.tokenizer.vocabulary.tokens if reads_text else (),
    )
    hasher = blake2b(repr(described).encode(errors="backslashreplace"), digest_size=16)
    for name, tensor in sorted(loaded.module.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
