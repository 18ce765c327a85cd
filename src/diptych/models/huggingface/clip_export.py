"""CLIP for Hugging Face's CLIPModel; the way back is clip_layouts.py.

It computes the same: both LayerNorm eps and the activation stand in its config, and ``eos_token_id`` 2 asks it to find a
text's end at the largest id, as the official code does. Known differences that no config removes: it does not hold the
scale of the cosines at 100 or below while it trains, and its pictures are square.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from diptych.checkpoints.adapter import Arguments, Exported, State, square
from diptych.checkpoints.huggingface.rules import hf_activation
from diptych.checkpoints.read import WeightsError
from diptych.models.clip.model import EPS
from diptych.models.huggingface.clip_layouts import HF_BLOCK, HF_OUTSIDE, HF_TOWERS, HF_TURNED
from diptych.models.huggingface.keys import LARGEST

BLOCK = {official: theirs for theirs, official in HF_BLOCK.items()}
OUTSIDE = {official: theirs for theirs, official in HF_OUTSIDE.items()}
TURNED = {official: theirs for theirs, official in HF_TURNED.items()}
TOWERS = {official: theirs for theirs, official in HF_TOWERS.items()}
_BLOCK = re.compile(r"(transformer|visual\.transformer)\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def clip(arguments: Arguments, task: str, official: State) -> Exported:
    """For CLIPModel, of OpenAI's and of open_clip's activation alike. Raises WeightsError for a grid that is no square."""
    side = square(arguments["grid"], "CLIP")
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
    """One official weight under their name; query, key and value under three. Raises WeightsError."""
    if block := _BLOCK.fullmatch(name):
        where, part, kind = f"{TOWERS[block[1]]}.encoder.layers.{block[2]}", block[3], block[4]
        if part == "attn.in_proj":
            names = (f"{where}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            return dict(zip(names, tensor.chunk(3), strict=True))
        return {f"{where}.{BLOCK[part]}.{kind}": tensor}
    if name in TURNED:
        return {TURNED[name]: tensor.T}
    if name not in OUTSIDE and name != "logit_scale":
        raise WeightsError(f"{name} has no place in Hugging Face's CLIPModel")
    return {OUTSIDE.get(name, name): tensor}
