"""Other layouts of weights, translated to the official names: Hugging Face's, JAX's for ViT, timm's for CrossViT.

Weights alone do not determine everything: Hugging Face's ViLT has one LayerNorm eps (1e-12) where the official code
has two, and its ViT has 1e-12; JAX's ViT has the tanh approximation of GELU. Without a config, the official eps and
the exact GELU are used; with one (models.huggingface.config), its values are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.huggingface import blip as hf_blip
from diptych.models.huggingface.clip_layouts import to_openai_names

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
"""Names within ``encoder.layer.N.`` in files, and within ``layers.N.`` in the state_dict of transformers 5's ViT."""

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
"""Names within ``Transformer/encoderblock_N/``."""

JAX_OUTSIDE = {
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding": "patch_embed.proj",
    "Transformer/encoder_norm": "norm",
    "pre_logits": "pre_logits.fc",
    "head": "head",
}


def to_official_names(system: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """The state under official names, and the number of attention heads if the layout determines it (JAX's does).

    Names of no known layout are unchanged. Raises WeightsError if a projection is incomplete.
    """
    if system == "vit" and "embedding/kernel" in state:
        return _from_jax(state)
    if system in ("clip", "open_clip"):
        return to_openai_names(state), None
    if system == "blip" and any(name.startswith(hf_blip.IMAGE) for name in state):
        return hf_blip.official(state), None
    if system == "crossvit":  # timm's, which has no lists of parameters
        return _renamed(state, lambda name: re.sub(r"^(pos_embed|cls_token)_(\d+)$", r"\1.\2", name)), None
    if any(name.removeprefix(f"{system}.").startswith("embeddings.") for name in state):
        return (_vilt if system == "vilt" else _vit)(state), None
    return dict(state), None


def _vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = _fuse_qkv(_renamed(state, lambda name: _encoder(name.removeprefix("vit."))))
    return _renamed(named, lambda name: re.sub(r"^classifier\.", "head.", name))


def _vilt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ViLT's official names: the encoder under "transformer."; text embeddings, pooler and heads at the top level."""

    def official(name: str) -> str:
        inner = name.removeprefix("vilt.")
        encoder_name = _encoder(inner)
        return f"transformer.{encoder_name}" if encoder_name != inner else inner.removeprefix("embeddings.")

    named = _fuse_qkv(_renamed(state, official))
    if "mlm_score.transform.dense.weight" in named:
        words, bias = named.get("text_embeddings.word_embeddings.weight"), named.pop("mlm_score.decoder.bias", None)
        # tied in transformers, so not always saved twice
        tied = {"mlm_score.decoder.weight": words, "mlm_score.bias": bias}
        named = {name: tensor for name, tensor in tied.items() if tensor is not None} | named
    head, pooler = named.get("classifier.0.weight"), named.get("pooler.dense.weight")
    if head is not None and pooler is not None:
        task = "vqa_classifier" if head.shape[-1] == pooler.shape[-1] else "nlvr2_classifier"  # one image, or two
        named = _renamed(named, lambda name: re.sub(r"^classifier\.", f"{task}.", name))
    return named


def _encoder(name: str) -> str:
    """timm's name of a weight of Hugging Face's encoder; query, key and value are still separate."""
    block = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)", name)
    if block and block[2] in HF_BLOCK:
        return f"blocks.{block[1]}.{HF_BLOCK[block[2]]}.{block[3]}"
    stem, dot, kind = name.rpartition(".")
    if name in HF_OUTSIDE:
        return HF_OUTSIDE[name]
    return f"{HF_OUTSIDE[stem]}{dot}{kind}" if stem in HF_OUTSIDE else name


def _from_jax(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """timm's names and layouts of a Flax state, and the number of attention heads.

    Flax kernels are (inputs…, outputs…); those of attention have an axis of heads, those of patches are (p, p, 3, d).
    """
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
    return _fuse_qkv(named), heads


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
            raise WeightsError(f"{name} is there twice: another weight has the same official name, {new}")
        named[new] = tensor
    return named


def _fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with query, key and value of each block as one projection. Raises WeightsError if one is missing."""
    merged = {name: tensor for name, tensor in state.items() if not _PART.fullmatch(name)}
    for attention, kind in dict.fromkeys((m[1], m[3]) for name in state if (m := _PART.fullmatch(name))):
        parts = [f"{attention}.{part}.{kind}" for part in ("query", "key", "value")]
        missing = [part for part in parts if part not in state]
        if missing:
            raise WeightsError(f"missing weights: {', '.join(missing)}")
        merged[f"{attention}.qkv.{kind}"] = torch.cat([state[part] for part in parts])
    return merged


_PART = re.compile(r"(.+\.attn)\.(query|key|value)\.(weight|bias)")
