"""Whether a tower computes what the weights that it starts from were trained for: heads and activation are in no shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from diptych.jobs.folder import RunError
from diptych.layers.feedforward import activation_named
from diptych.recipes.models import ViT
from diptych.weights.hf_folder import read_object
from diptych.weights.hf_keys import BERT
from diptych.weights.hf_rules import apply
from diptych.weights.start_towers import first_text_block


def check_image_start(before: Any, block: nn.Module, where: str) -> None:
    """Raises RunError where a ViT's run has other heads or another activation than the `block` that begins with its weights."""
    if isinstance(before, ViT):
        _same(block, before.heads, before.activation, where)


def check_text_start(checkpoint: Path, model: nn.Module) -> None:
    """The same of a BERT, by the config.json beside its weights, where there is one. Raises RunError, WeightsError."""
    file = checkpoint.parent / "config.json"
    if not file.is_file() or (values := read_object(file)).get("model_type") != "bert":
        return
    settings, _ = apply(BERT, values, f"{file}: ")
    _same(first_text_block(model), settings["heads"], settings["activation"], str(file))


def _same(block: Any, heads: int, activation: str, where: str) -> None:
    wanted, own = activation_named(activation), block.feedforward.activation
    if block.attention.heads != heads:
        raise RunError(
            f"{where} has {heads} attention heads, but the model that starts from it {block.attention.heads}"
        )
    if repr(wanted) != repr(own):
        raise RunError(f"{where} has the activation {activation}, but the model that starts from it {own}")
