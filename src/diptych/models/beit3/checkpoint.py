"""BEiT-3's official checkpoints: weight names, sizes inferred from shapes, and the training step of each task."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    State,
    config_grid,
    config_of,
    count_layers,
    has_prefix,
    infer_grid,
    infer_num_heads,
    losses_of_heads,
    shape_of,
    task_by_prefix,
)
from diptych.checkpoints.mapping import CONV_AS_LINEAR, UNSQUEEZED, KeyMapping, concat_layers, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.positions import AbsolutePositions
from diptych.models.beit3.config import BEiT3Config
from diptych.models.beit3.model import NUM_UNUSED_POSITIONS
from diptych.modules.heads import ITCHead, LogScale, MLPClassifier
from diptych.modules.position import resize_bicubic_plain
from diptych.objectives.itc import ITCLoss
from diptych.objectives.masked_captions import MaskedCaptionLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import WordMasking
from diptych.tasks.classification import Classification
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.vqa import ClosedVQA

EXPERTS = {"A": "image", "B": "text"}
MASK = 64001  # the id of the mask token in the released vocabulary


def _experts(official: str, ours: str) -> dict[str, str]:
    """The image and the text expert of one layer."""
    return {
        k: v for a, name in EXPERTS.items() for k, v in weight_and_bias(f"{official}.{a}", f"{ours}.{name}").items()
    }


def _block(i: int) -> dict[str, str]:
    theirs, ours = f"beit3.encoder.layers.{i}", f"model.transformer.blocks.{i}"
    table = {
        **_experts(f"{theirs}.self_attn_layer_norm", f"{ours}.norm1"),
        **_experts(f"{theirs}.self_attn.inner_attn_ln", f"{ours}.inner_norm"),
        **_experts(f"{theirs}.self_attn.out_proj", f"{ours}.out"),
        **_experts(f"{theirs}.final_layer_norm", f"{ours}.norm2"),
    }
    for a, name in EXPERTS.items():
        table |= concat_layers((f"{theirs}.self_attn.{x}_proj.{a}" for x in "qkv"), f"{ours}.qkv.{name}")
        for official, layer in (("fc1", "fc1"), ("ffn_layernorm", "norm"), ("fc2", "fc2")):
            table |= weight_and_bias(f"{theirs}.ffn.{a}.{official}", f"{ours}.feedforward.{name}.{layer}")
    return table


HEADS = {
    "vqa": {
        **weight_and_bias("pooler.norm", "model.transformer.pooler.norm"),
        **weight_and_bias("pooler.dense", "model.transformer.pooler.dense"),
        **weight_and_bias("head.0", "head.dense"),
        **weight_and_bias("head.1", "head.norm"),
        **weight_and_bias("head.3", "head.answers"),
    },
    "nlvr2": {
        k: v
        for n in ("norm1", "dense1", "norm2", "dense2")
        for k, v in weight_and_bias(f"head.{n}", f"head.{n}").items()
    },
    "classification": {**weight_and_bias("fc_norm", "model.head.norm"), **weight_and_bias("head", "model.head.linear")},
    "captioning": weight_and_bias("mlm_head", "model.lm_head"),
    "retrieval": {
        "vision_head.weight": "heads.itc.image.weight",
        "language_head.weight": "heads.itc.text.weight",
        "logit_scale": "heads.itc.scale.log",
    },
    "encoder": {},
}
TASK_PREFIXES = {
    "vision_head.": "retrieval",
    "mlm_head.": "captioning",
    "fc_norm.": "classification",
    "pooler.dense.": "vqa",
    "head.dense2.": "nlvr2",
}
"""The task of an official checkpoint, by the prefix of its head."""


def task(state: State) -> str:
    """The task that a checkpoint under official names was trained for, by its head; "encoder" if it has none."""
    return task_by_prefix(state, TASK_PREFIXES)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments, trained for this task."""
    table = {
        "beit3.text_embed.weight": "model.word.weight",
        "beit3.vision_embed.mask_token": "model.mask_token",
        "beit3.vision_embed.cls_token": "model.patches.cls",
        **weight_and_bias("beit3.vision_embed.proj", "model.patches.project"),
        "beit3.encoder.embed_positions.A.weight": "model.patches.position",
        "beit3.encoder.embed_positions.B.weight": "model.position.weight",
        **_experts("beit3.encoder.layer_norm", "model.transformer.norm"),
        **HEADS[task],
    }
    for i in range(arguments["depth"]):
        table |= _block(i)
    forms = {"beit3.vision_embed.proj.weight": CONV_AS_LINEAR, "beit3.encoder.embed_positions.A.weight": UNSQUEEZED}
    return KeyMapping(table, transforms=forms)


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of BEiT3 for a checkpoint under official names. Raises WeightsError."""
    vocabulary, width = shape_of(state, "beit3.text_embed.weight", 2)
    cells, _ = shape_of(state, "beit3.encoder.embed_positions.A.weight", 2)
    mask = stated(config, "mask_token_id", "special_ids.mask")
    return {
        "dim": width,
        "depth": count_layers(state, "beit3.encoder.layers", "final_layer_norm.A.weight"),
        "num_heads": infer_num_heads(width, config, "num_heads", "num_heads", "encoder_attention_heads"),
        "mlp_dim": shape_of(state, "beit3.encoder.layers.0.ffn.A.fc1.weight", 2)[0],
        "patch_size": shape_of(state, "beit3.vision_embed.proj.weight", 4)[-1],
        "grid": infer_grid(
            cells - NUM_UNUSED_POSITIONS - 1, config_grid(config), "beit3.encoder.embed_positions.A.weight"
        ),
        "vocab_size": vocabulary,
        "text_length": shape_of(state, "beit3.encoder.embed_positions.B.weight", 2)[0] - NUM_UNUSED_POSITIONS,
        "pooling": "image" if task(state) == "vqa" else "both",
        "final_norm": has_prefix(state, "beit3.encoder.layer_norm.A."),
        "num_classes": shape_of(state, "head.weight", 2)[0] if task(state) == "classification" else 0,
        "with_decoder": task(state) == "captioning",
        "mask_token_id": MASK if mask is None else mask,
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a fine-tuned checkpoint, or the model under "model" if it has no head."""
    model = config_of(BEiT3Config, arguments).build()
    if task == "vqa":
        return ClosedVQA(model, model.dim, shape_of(state, "head.answers.weight", 2)[0])
    if task == "nlvr2":
        return NLVR2(model, 2 * model.dim, MLPClassifier(4 * model.dim, 2 * model.dim, 2))
    if task == "classification":
        return Classification(model, arguments["num_classes"])
    if task == "captioning":
        masking = WordMasking(model.vocab_size, model.mask_token_id, 0.7)
        return Pretraining(model, model.pretraining_heads(), [MaskedCaptionLoss(masking)])
    if task == "retrieval":
        contrast = ITCHead(model.dim, model.dim, model.dim, LogScale(), bias=False)
        return Pretraining(model, nn.ModuleDict({"itc": contrast}), [ITCLoss()])
    return nn.ModuleDict({"model": model})


ADAPTER = CheckpointAdapter(
    name="beit3",
    config_class=BEiT3Config,
    matches=lambda state: "beit3.text_embed.weight" in state,
    task=task,
    losses=lambda task, heads: ("masked_captions",) if task == "captioning" else losses_of_heads(heads),
    names=names,
    infer=infer,
    build=build,
    positions=(
        AbsolutePositions(
            "beit3.encoder.embed_positions.A.weight",
            "model.patches.position",
            resize_bicubic_plain,
            NUM_UNUSED_POSITIONS + 1,
        ),
    ),
    model_prefix="model",
    fixed={"subln": (True,), "multiway": (True,)},
)
