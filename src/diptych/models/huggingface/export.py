"""Export from official names to Hugging Face's, with a config that its classes load: the inverse of layouts.py.

Differs, whatever the config: Hugging Face's ViLT has one LayerNorm eps where the official code has two (the text
embedding's becomes the transformer's). Its MLM head is untied by ``tie_word_embeddings`` False.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from diptych.checkpoints.adapter import Arguments, Exported, State
from diptych.checkpoints.huggingface.rules import hf_activation
from diptych.checkpoints.read import WeightsError
from diptych.models.huggingface.blip import blip
from diptych.models.huggingface.clip_export import clip
from diptych.models.huggingface.layouts import HF_BLOCK, HF_OUTSIDE

BLOCK = {official: theirs for theirs, official in reversed(HF_BLOCK.items())}  # the first, as in published files
OUTSIDE = {official: theirs for theirs, official in HF_OUTSIDE.items()}


def _encoder(name: str) -> str:
    """Hugging Face's name of a weight of timm's ViT whose query, key and value are already separate."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if block:
        return f"encoder.layer.{block[1]}.{BLOCK[block[2]]}.{block[3]}"
    stem, dot, kind = name.rpartition(".")
    if name in OUTSIDE:
        return OUTSIDE[name]
    if stem not in OUTSIDE:
        raise WeightsError(f"{name} has no counterpart in Hugging Face's layout")
    return f"{OUTSIDE[stem]}{dot}{kind}"


def _split_qkv(state: State) -> dict[str, Tensor]:
    """The state with each fused projection as separate query, key and value."""
    separate: dict[str, Tensor] = {}
    for name, tensor in state.items():
        attention, qkv, kind = name.partition(".qkv.")
        if not qkv:
            separate[name] = tensor
            continue
        for part, weight in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            separate[f"{attention}.{part}.{kind}"] = weight
    return separate


def _sizes(arguments: Arguments) -> dict[str, Any]:
    """The keys of config.json that ViT and ViLT share."""
    rows, columns = arguments["grid"]
    patch = arguments["patch_size"]
    return {
        "hidden_size": arguments["dim"],
        "num_hidden_layers": arguments["depth"],
        "num_attention_heads": arguments["num_heads"],
        "intermediate_size": arguments["mlp_dim"],
        "patch_size": patch,
        "image_size": patch * rows if rows == columns else [patch * rows, patch * columns],
        "layer_norm_eps": arguments.get("eps", 1e-6),
        "hidden_act": hf_activation(arguments.get("activation", "gelu")),
        "hidden_dropout_prob": arguments["dropout"],
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
    }


def vit(arguments: Arguments, task: str, official: State) -> Exported:
    """The export to ViTForImageClassification, or to ViTModel without a classifier. Raises WeightsError for pooling."""
    if arguments["pooling"] != "cls":
        raise WeightsError("Hugging Face's ViT pools by the class token only; this model averages the patches")
    labels = arguments["num_classes"]
    config = _sizes(arguments) | {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification" if labels else "ViTModel"],
        "num_labels": labels or 2,
    }
    named = {}
    for name, tensor in _split_qkv(official).items():
        head = name.startswith("head.")
        named[name.replace("head.", "classifier.") if head else ("vit." if labels else "") + _encoder(name)] = tensor
    return config, named, []


def vilt(arguments: Arguments, task: str, official: State) -> Exported:
    """The export to ViltForMaskedLM, ViltForQuestionAnswering, ViltForImagesAndTextClassification,
    ViltForImageAndTextRetrieval, or ViltModel without a head.

    Each class has one head: of the two of pre-training, the ITM head is left out.
    """
    kinds = {
        "pretraining": ("ViltForMaskedLM", {"mlm_score.": "mlm_score."}),
        "vqa": ("ViltForQuestionAnswering", {"vqa_classifier.": "classifier."}),
        "nlvr2": ("ViltForImagesAndTextClassification", {"nlvr2_classifier.": "classifier."}),
        "retrieval": ("ViltForImageAndTextRetrieval", {"rank_output.": "rank_output."}),
        "encoder": ("ViltModel", {}),
    }
    architecture, heads = kinds[task]
    config = _sizes(arguments) | {
        "model_type": "vilt",
        "architectures": [architecture],
        "vocab_size": arguments["vocab_size"],
        "max_position_embeddings": arguments["text_length"],
        "modality_type_vocab_size": 1 + arguments["num_images"],
        "type_vocab_size": 2,
        "num_images": arguments["num_images"] if task == "nlvr2" else -1,
        "tie_word_embeddings": False,
        "num_labels": next((t.shape[0] for n, t in official.items() if n.endswith("classifier.3.weight")), 2),
    }
    named: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, tensor in _split_qkv(official).items():
        head = next((ours for theirs, ours in heads.items() if name.startswith(theirs)), None)
        if head is not None:
            named[head + name.split(".", 1)[1]] = tensor
        elif name.startswith("transformer."):
            named["vilt." + _encoder(name.removeprefix("transformer."))] = tensor
        elif name.startswith(("text_embeddings.", "token_type_embeddings.")):
            named[f"vilt.embeddings.{name}"] = tensor
        elif name.startswith("pooler."):
            named[f"vilt.{name}"] = tensor
        elif name.startswith(("itm_score.", "mlm_score.")):
            left_out.append(f"{name} ({architecture} has no such head)")
        else:
            raise WeightsError(f"{name} has no counterpart in Hugging Face's {architecture}")
    if task == "encoder":
        named = {name.removeprefix("vilt."): tensor for name, tensor in named.items()}
    if task == "pretraining" and "mlm_score.bias" in named:
        named["mlm_score.decoder.bias"] = named["mlm_score.bias"]
    return config, named, left_out


EXPORTERS: Mapping[str, Callable[[Arguments, str, State], Exported]] = {
    "vit": vit,
    "vilt": vilt,
    "clip": clip,
    "open_clip": clip,
    "blip": blip,
}
"""The systems that can be exported to a class of transformers."""
