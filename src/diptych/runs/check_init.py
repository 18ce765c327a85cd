"""Checks that an encoder has the attention heads and activation of the weights that it is initialised from.

Weight shapes show neither.
"""

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

OLD_BERT_KEYS = {"num_attention_heads", "hidden_act", "type_vocab_size"}
"""Keys of a BERT's config.json, by which old ones, without a model_type, are recognised."""


def check_image_start(source: Any, block: nn.Module, where: str) -> None:
    """Raises RunError if `source`, a ViT's config, has other heads or activation than the `block` it initialises.

    Configs of other models pass: they are refused elsewhere. `where`: names the source in the error.
    """
    if isinstance(source, ViTConfig):
        _check_equal(block, source.num_heads, source.activation, where)


def check_text_start(checkpoint: Path, model: nn.Module) -> None:
    """The same check for a BERT, if a config.json lies beside its weights. Raises RunError, WeightsError."""
    file = checkpoint.parent / CONFIG
    values = read_object(file) if file.is_file() else {}
    if values.get("model_type", "bert" if values.keys() >= OLD_BERT_KEYS else None) != "bert":
        return
    settings, _ = apply(BERT, values, f"{file}: ")
    _check_equal(first_text_block(model), settings["num_heads"], settings["activation"], str(file))


def _check_equal(block: Any, num_heads: int, activation: str, where: str) -> None:
    own_heads, own = block.attention.num_heads, block.feedforward.activation
    if own_heads != num_heads:
        raise RunError(f"{where} has {num_heads} attention heads, but the model that it initialises has {own_heads}")
    if repr(activation_named(activation)) != repr(own):
        raise RunError(f"{where} has the activation {activation}, but the model that it initialises has {own}")
