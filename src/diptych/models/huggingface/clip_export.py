"""Export of CLIP to Hugging Face's CLIPModel; the inverse is clip_layouts.py.

It computes the same: the config has both LayerNorm eps and the activation, and with ``eos_token_id`` 2 it finds the
end of a text at the largest id, as the official code does. Differs, whatever the config: it does not clamp the logit
scale to 100 in training, and its images are square.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from diptych.checkpoints.adapter import Arguments, Exported, State, square_side
from diptych.checkpoints.huggingface.rules import hf_activation
from diptych.checkpoints.read import WeightsError
from diptych.models.clip.model import EPS
from diptych.models.huggingface.clip_layouts import HF_BLOCK, HF_OUTSIDE, HF_TOWERS, HF_TRANSPOSED
from diptych.models.huggingface.keys import LARGEST

BLOCK = {official: theirs for theirs, official in HF_BLOCK.items()}
OUTSIDE = {official: theirs for theirs, official in HF_OUTSIDE.items()}
TRANSPOSED = {official: theirs for theirs, official in HF_TRANSPOSED.items()}
TOWERS = {official: theirs for theirs, official in HF_TOWERS.items()}
_BLOCK = re.compile(r"(transformer|visual\.transformer)\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def clip(arguments: Arguments, task: str, official: State) -> Exported:
    """The export to CLIPModel, with OpenAI's or open_clip's activation. Raises WeightsError for images not square."""
    side = square_side(arguments["grid"], "CLIP")
    image = _tower("", arguments) | {
        "image_size": side * arguments["patch_size"],
        "patch_size": arguments["patch_size"],
    }
    text = _tower("text_", arguments) | {
        "vocab_size": arguments["vocab_size"],
        "max_position_embeddings": arguments["text_length"],
        "eos_token_id": LARGEST,
        "bos_token_id": arguments["vocab_size"] - 2,
        "pad_token_id": 0,
    }
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": arguments["embed_dim"],
        "vision_config": image | {"model_type": "clip_vision_model"},
        "text_config": text | {"model_type": "clip_text_model"},
    }
    named: dict[str, Tensor] = {}
    for name, tensor in official.items():
        named |= _named(name, tensor)
    return config, named, []


def _tower(prefix: str, arguments: Arguments) -> dict[str, Any]:
    return {
        "hidden_size": arguments[f"{prefix}dim"],
        "num_hidden_layers": arguments[f"{prefix}depth"],
        "num_attention_heads": arguments[f"{prefix}num_heads"],
        "intermediate_size": arguments[f"{prefix}mlp_dim"],
        "projection_dim": arguments["embed_dim"],
        "hidden_act": hf_activation(arguments.get(f"{prefix}activation") or arguments["activation"]),
        "layer_norm_eps": arguments.get(f"{prefix}eps", EPS),
        "attention_dropout": 0.0,
    }


def _named(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One official weight under Hugging Face's name; a fused projection under three names. Raises WeightsError."""
    if block := _BLOCK.fullmatch(name):
        layer, part, kind = f"{TOWERS[block[1]]}.encoder.layers.{block[2]}", block[3], block[4]
        if part == "attn.in_proj":
            names = (f"{layer}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            return dict(zip(names, tensor.chunk(3), strict=True))
        return {f"{layer}.{BLOCK[part]}.{kind}": tensor}
    if name in TRANSPOSED:
        return {TRANSPOSED[name]: tensor.T}
    if name not in OUTSIDE and name != "logit_scale":
        raise WeightsError(f"{name} has no counterpart in Hugging Face's CLIPModel")
    return {OUTSIDE.get(name, name): tensor}
