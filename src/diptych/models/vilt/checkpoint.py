"""ViLT's official checkpoints: weight names, sizes inferred from shapes, and the training step of each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    State,
    config_of,
    shape_of,
    task_by_prefix,
)
from diptych.checkpoints.mapping import CONV_AS_LINEAR, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig
from diptych.checkpoints.positions import AbsolutePositions
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.modules.position import resize_bilinear
from diptych.objectives.itm import ITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.wpa import WPALoss
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import Retrieval
from diptych.tasks.vqa import ClosedVQA

OUTSIDE_BLOCKS = KeyMapping(
    {
        "text_embeddings.word_embeddings.weight": "model.words.word.weight",
        "text_embeddings.position_embeddings.weight": "model.words.position.weight",
        "text_embeddings.token_type_embeddings.weight": "model.words.segment.weight",
        **weight_and_bias("text_embeddings.LayerNorm", "model.words.norm"),
        "token_type_embeddings.weight": "model.modality.weight",
        **prefixed("transformer.", "model.", PATCHES),
        **weight_and_bias("transformer.norm", "model.transformer.norm"),
        **weight_and_bias("pooler.dense", "model.transformer.pooler.dense"),
    },
    ignored={"text_embeddings.position_ids": "a buffer of 0, 1, 2 …, not a weight"},
    transforms={"transformer.patch_embed.proj.weight": CONV_AS_LINEAR},
)
"""Everything except the blocks; VLMo's code, which is based on ViLT's, has the same names."""
MODEL = OUTSIDE_BLOCKS | KeyMapping(prefixed("transformer.", "model.transformer.", BLOCK))
HEADS = KeyMapping(
    weight_and_bias("itm_score.fc", "heads.itm.linear")
    | weight_and_bias("mlm_score.transform.dense", "heads.mlm.dense")
    | weight_and_bias("mlm_score.transform.LayerNorm", "heads.mlm.norm")
    | {"mlm_score.decoder.weight": "heads.mlm.decoder.weight", "mlm_score.bias": "heads.mlm.bias"}
)


def classifier(official: str) -> KeyMapping:
    """The classifier of a task under an official prefix."""
    return KeyMapping(
        weight_and_bias(f"{official}.0", "head.dense")
        | weight_and_bias(f"{official}.1", "head.norm")
        | weight_and_bias(f"{official}.3", "head.answers")
    )


FROZEN = "frozen and unused in fine-tuning; rank_output was initialised from its row 1"
NAMES = {
    "pretraining": MODEL | HEADS,
    "vqa": MODEL | classifier("vqa_classifier"),
    "nlvr2": MODEL | classifier("nlvr2_classifier"),
    "retrieval": MODEL
    | KeyMapping(
        weight_and_bias("rank_output", "rank.linear"),
        ignored={"itm_score.fc.weight": FROZEN, "itm_score.fc.bias": FROZEN},
    ),
    "encoder": MODEL,
}
TASK_PREFIXES = {
    "vqa_classifier.": "vqa",
    "nlvr2_classifier.": "nlvr2",
    "rank_output.": "retrieval",
    "mlm_score.": "pretraining",
    "itm_score.": "pretraining",
}
"""The task of an official checkpoint, by the prefix of its head."""


def task(state: State) -> str:
    """The task that a checkpoint under official names was trained for; "encoder" if it has no head."""
    return task_by_prefix(state, TASK_PREFIXES)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a checkpoint of this task."""
    return NAMES[task]


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of ViLT for a checkpoint under official names. Raises WeightsError."""
    return encoder_shape(state, "transformer.", config, "num_heads", "num_heads", "num_attention_heads") | {
        "vocab_size": shape_of(state, "text_embeddings.word_embeddings.weight", 2)[0],
        "text_length": shape_of(state, "text_embeddings.position_embeddings.weight", 2)[0],
        "num_images": shape_of(state, "token_type_embeddings.weight", 2)[0] - 1,
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The training step of a checkpoint (`state` under our names), or the model under "model" if it has no head.

    In pre-training, the step has the heads of the checkpoint and their objectives.
    """
    model = config_of(ViLTConfig, arguments).build()
    if task == "vqa":
        return ClosedVQA(model, model.dim, shape_of(state, "head.answers.weight", 2)[0])
    if task == "nlvr2":
        return NLVR2(model, model.dim)
    if task == "retrieval":
        return Retrieval(model, model.dim)
    if task == "pretraining":
        return _pretraining(model, {name.split(".")[1] for name in state if name.startswith("heads.")})
    return nn.ModuleDict({"model": model})


def _pretraining(model: ViLT, present: set[str]) -> Pretraining:
    heads = nn.ModuleDict({name: head for name, head in model.pretraining_heads().items() if name in present})
    objectives: dict[str, list[Objective]] = {"itm": [ITMLoss(), WPALoss()], "mlm": [MLMLoss()]}
    return Pretraining(model, heads, [objective for name in heads for objective in objectives[name]])


ADAPTER = CheckpointAdapter(
    name="vilt",
    config_class=ViLTConfig,
    matches=lambda state: (
        "transformer.patch_embed.proj.weight" in state
        and "transformer.cls_token" in state
        and "text_embeddings.token_type_embeddings.weight" in state
        and "transformer.blocks.0.mlp.fc1.weight" in state
    ),
    task=task,
    names=names,
    infer=infer,
    build=build,
    losses=lambda task, heads: (*heads, *(("wpa",) if "itm" in heads else ())),
    model_prefix="state_dict",
    positions=(AbsolutePositions("transformer.pos_embed", "model.patches.position", resize_bilinear),),
)
