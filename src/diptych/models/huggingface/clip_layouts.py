"""Other layouts of CLIP's weights, translated to OpenAI's names: Hugging Face's, and open_clip's "custom_text".

Weights alone do not determine the activation: it is that of "clip" or "open_clip" unless a config states it. Hugging
Face finds the end of a text by its id, which for CLIP's tokenizer is the largest id and so the same token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError

HF_TOWERS = {"text_model": "transformer", "vision_model": "visual.transformer"}
HF_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
HF_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
HF_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_BLOCK = re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def to_openai_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under OpenAI's names; unknown names stay. Raises WeightsError if a projection is incomplete."""
    if any(name.startswith("text_model.") for name in state):
        return _from_hf(state)
    if "text.token_embedding.weight" in state and "text.cls_emb" not in state:  # open_clip's "custom_text"
        return {name.removeprefix("text."): tensor for name, tensor in state.items()}
    return dict(state)


def _from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        layer = f"{HF_TOWERS[block[1]]}.resblocks.{block[2]}" if block else ""
        if block and block[3] in _QKV:
            fused.setdefault(f"{layer}.attn.in_proj_{block[4]}", {})[block[3]] = tensor
        elif block and block[3] in HF_BLOCK:
            named[f"{layer}.{HF_BLOCK[block[3]]}.{block[4]}"] = tensor
        elif name in HF_TRANSPOSED:
            named[HF_TRANSPOSED[name]] = tensor.T
        elif not name.endswith("embeddings.position_ids"):  # a buffer of 0, 1, 2 … in older files
            named[HF_OUTSIDE.get(name, name)] = tensor
    for name, parts in fused.items():
        if len(parts) < len(_QKV):
            missing = ", ".join(part for part in _QKV if part not in parts)
            raise WeightsError(f"{name} lacks {missing}")
        named[name] = torch.cat([parts[part] for part in _QKV])
    return named
