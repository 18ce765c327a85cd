"""Whether a tower computes what the weights that it starts from were trained for: heads and activation are in no shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from diptych.checkpoints.huggingface.folder import CONFIG, read_object
from diptych.checkpoints.huggingface.rules import apply
from diptych.models.configs import ViTConfig
from diptych.models.huggingface.keys import BERT
from diptych.models.initialize import first_text_block
from diptych.modules.block import activation_named
from diptych.runs.run_folder import RunError

OLDEST = {"num_attention_heads", "hidden_act", "type_vocab_size"}
"""Keys that a BERT's config has, also the oldest, which state no model_type."""


def check_image_start(before: Any, block: nn.Module, where: str) -> None:
    """Raises RunError where a ViT's run has other heads or another activation than the `block` that begins with its weights."""
    if isinstance(before, ViTConfig):
        _same(block, before.num_heads, before.activation, where)


def check_text_start(checkpoint: Path, model: nn.Module) -> None:
    """The same of a BERT, by the config.json beside its weights, where there is one. Raises RunError, WeightsError."""
    file = checkpoint.parent / CONFIG
    values = read_object(file) if file.is_file() else {}
    if values.get("model_type", "bert" if values.keys() >= OLDEST else None) != "bert":
        return
    settings, _ = apply(BERT, values, f"{file}: ")
    _same(first_text_block(model), settings["num_heads"], settings["activation"], str(file))


def _same(block: Any, num_heads: int, activation: str, where: str) -> None:
    wanted, own = activation_named(activation), block.feedforward.activation
    if block.attention.num_heads != num_heads:
        raise RunError(
            f"{where} has {num_heads} attention heads, but the model that starts from it {block.attention.num_heads}"
        )
    if repr(wanted) != repr(own):
        raise RunError(f"{where} has the activation {activation}, but the model that starts from it {own}")
