"""Other people's layouts of the same weights, translated to the official names: Hugging Face's, JAX's for ViT, and
timm's for CrossViT.

What weights alone do not carry: Hugging Face's ViLT has one LayerNorm eps (1e-12) where the official code has two, and its
ViT has 1e-12; JAX's ViT has the tanh form of GELU. Weights without a config run with the official eps and the exact GELU; with
one (weights.hf_config) they run as it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.huggingface import blip as hf_blip
from diptych.models.huggingface.clip_layouts import openai

HF_BLOCK = {
    "layernorm_before": "norm1",
    "attention.attention.query": "attn.query", "attention.q_proj": "attn.query",
    "attention.attention.key": "attn.key", "attention.k_proj": "attn.key",
    "attention.attention.value": "attn.value", "attention.v_proj": "attn.value",
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1", "mlp.fc1": "mlp.fc1",
    "output.dense": "mlp.fc2", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
"""Within ``encoder.layer.N.`` as files have it, and within ``layers.N.`` as transformers 5 holds ViT in memory."""

HF_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}

JAX_BLOCK = {
    "LayerNorm_0": "norm1", "LayerNorm_2": "norm2",
    "MultiHeadDotProductAttention_1/query": "attn.query", "MultiHeadDotProductAttention_1/key": "attn.key",
    "MultiHeadDotProductAttention_1/value": "attn.value", "MultiHeadDotProductAttention_1/out": "attn.proj",
    "MlpBlock_3/Dense_0": "mlp.fc1", "MlpBlock_3/Dense_1": "mlp.fc2",
}  # fmt: skip
"""Within ``Transformer/encoderblock_N/``."""

JAX_OUTSIDE = {
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding": "patch_embed.proj",
    "Transformer/encoder_norm": "norm",
    "pre_logits": "pre_logits.fc",
    "head": "head",
}


def unified(system: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """The state under official names, and the number of attention heads where the layout tells it (JAX's does).

    Names that belong to no known layout are left as they are. Raises WeightsError where a projection lacks its parts.
    """
    if system == "vit" and "embedding/kernel" in state:
        return _from_jax(state)
    if system in ("clip", "open_clip"):
        return openai(state), None
    if system == "blip" and any(name.startswith(hf_blip.IMAGE) for name in state):
        return hf_blip.official(state), None
    if system == "crossvit":  # timm's, which keeps no lists of parameters
        return _renamed(state, lambda name: re.sub(r"^(pos_embed|cls_token)_(\d+)$", r"\1.\2", name)), None
    if any(name.removeprefix(f"{system}.").startswith("embeddings.") for name in state):
        return (_vilt if system == "vilt" else _vit)(state), None
    return dict(state), None


def _vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = _merged(_renamed(state, lambda name: _encoder(name.removeprefix("vit."))))
    return _renamed(named, lambda name: re.sub(r"^classifier\.", "head.", name))


def _vilt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `_vit`, the encoder under "transformer."; text embeddings, pooler and heads beside it."""

    def official(name: str) -> str:
        inner = name.removeprefix("vilt.")
        known = _encoder(inner)
        return f"transformer.{known}" if known != inner else inner.removeprefix("embeddings.")

    named = _merged(_renamed(state, official))
    if "mlm_score.transform.dense.weight" in named:
        words, bias = named.get("text_embeddings.word_embeddings.weight"), named.pop("mlm_score.decoder.bias", None)
        tied = {"mlm_score.decoder.weight": words, "mlm_score.bias": bias}  # there, and not always saved twice
        named = {name: tensor for name, tensor in tied.items() if tensor is not None} | named
    head, pooler = named.get("classifier.0.weight"), named.get("pooler.dense.weight")
    if head is not None and pooler is not None:
        task = "vqa_classifier" if head.shape[-1] == pooler.shape[-1] else "nlvr2_classifier"  # reads one image, or two
        named = _renamed(named, lambda name: re.sub(r"^classifier\.", f"{task}.", name))
    return named


def _encoder(name: str) -> str:
    """timm's name of a weight of Hugging Face's encoder, with query, key and value still apart."""
    block = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)", name)
    if block and block[2] in HF_BLOCK:
        return f"blocks.{block[1]}.{HF_BLOCK[block[2]]}.{block[3]}"
    stem, dot, kind = name.rpartition(".")
    if name in HF_OUTSIDE:
        return HF_OUTSIDE[name]
    return f"{HF_OUTSIDE[stem]}{dot}{kind}" if stem in HF_OUTSIDE else name


def _from_jax(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """Flax kernels are (inputs…, outputs…); attention's have an axis of heads, the patches' are (rows, columns, 3, width)."""
    named, heads = {}, None
    for name, tensor in state.items():
        translated = _jax(name)
        if name == "embedding/kernel":
            tensor = tensor.permute(3, 2, 0, 1)
        elif translated.endswith((".query.weight", ".key.weight", ".value.weight")):
            heads = tensor.shape[1]
            tensor = tensor.flatten(1).T
        elif translated.endswith("attn.proj.weight"):
            tensor = tensor.flatten(0, 1).T
        elif translated.endswith((".query.bias", ".key.bias", ".value.bias")):
            tensor = tensor.flatten()
        elif name.endswith("/kernel"):
            tensor = tensor.T
        named[translated] = tensor.contiguous()
    return _merged(named), heads


def _jax(name: str) -> str:
    """timm's name of a Flax weight."""
    stem, _, kind = name.rpartition("/")
    kind = {"kernel": "weight", "scale": "weight"}.get(kind, kind)
    block = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", stem)
    if block and block[2] in JAX_BLOCK:
        return f"blocks.{block[1]}.{JAX_BLOCK[block[2]]}.{kind}"
    if name in JAX_OUTSIDE:
        return JAX_OUTSIDE[name]
    return f"{JAX_OUTSIDE[stem]}.{kind}" if stem in JAX_OUTSIDE else name


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (new := rename(name)) in named:
            raise WeightsError(f"{name} is there twice, under another name too")
        named[new] = tensor
    return named


def _merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of each block as the one projection of the official code."""
    merged = {name: tensor for name, tensor in state.items() if not _PART.fullmatch(name)}
    for where, kind in dict.fromkeys((m[1], m[3]) for name in state if (m := _PART.fullmatch(name))):
        parts = [f"{where}.{part}.{kind}" for part in ("query", "key", "value")]
        missing = [part for part in parts if part not in state]
        if missing:
            raise WeightsError(f"missing weights: {', '.join(missing)}")
        merged[f"{where}.qkv.{kind}"] = torch.cat([state[part] for part in parts])
    return merged


_PART = re.compile(r"(.+\.attn)\.(query|key|value)\.(weight|bias)")
