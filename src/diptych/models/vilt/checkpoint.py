"""ViLT's weights: the official names, for pre-training and each downstream task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, OfficialConfig, State, first_marker, shape
from diptych.checkpoints.mapping import FLAT, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.positions import Absolute
from diptych.models.vilt.model import ViLT
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.modules.position import resize_bilinear
from diptych.objectives.itm import ITM
from diptych.objectives.mlm import MLM
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.wpa import WPA
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vqa import ClosedVQA

AROUND = KeyMapping(
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
    forms={"transformer.patch_embed.proj.weight": FLAT},
)
"""What stands around the blocks, and is called alike in VLMo's code, which began as ViLT's."""
MODEL = AROUND | KeyMapping(prefixed("transformer.", "model.transformer.", BLOCK))
HEADS = KeyMapping(
    weight_and_bias("itm_score.fc", "heads.match.linear")
    | weight_and_bias("mlm_score.transform.dense", "heads.words.dense")
    | weight_and_bias("mlm_score.transform.LayerNorm", "heads.words.norm")
    | {"mlm_score.decoder.weight": "heads.words.words.weight", "mlm_score.bias": "heads.words.bias"}
)


def classifier(official: str) -> KeyMapping:
    """A task's head."""
    return KeyMapping(
        weight_and_bias(f"{official}.0", "head.dense")
        | weight_and_bias(f"{official}.1", "head.norm")
        | weight_and_bias(f"{official}.3", "head.answers")
    )


FROZEN = "frozen while fine-tuning, where nothing reads it; rank_output began as its row 1"
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
MARKS = {
    "vqa_classifier.": "vqa",
    "nlvr2_classifier.": "nlvr2",
    "rank_output.": "retrieval",
    "mlm_score.": "pretraining",
    "itm_score.": "pretraining",
}
"""What an official checkpoint was trained for, by the head it carries."""


def task(state: State) -> str:
    """What an officially named checkpoint was trained for; "encoder" where it has no head."""
    return first_marker(state, MARKS)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names that a checkpoint is read and written by."""
    return NAMES[task]


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.vilt.ViLT that an officially named checkpoint was made with. Raises WeightsError."""
    return encoder_shape(
        state, "transformer.", told.get("num_heads", told.get("num_attention_heads")), told.get("grid")
    ) | {
        "vocab_size": shape(state, "text_embeddings.word_embeddings.weight", 2)[0],
        "text_length": shape(state, "text_embeddings.position_embeddings.weight", 2)[0],
        "num_images": shape(state, "token_type_embeddings.weight", 2)[0] - 1,
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The step that an imported checkpoint (`state`, our names) was trained in; a pre-training one has the heads that
    the checkpoint holds, and their objectives. A model without heads stands under "model" alone.
    """
    model = ViLT(**arguments)
    if task == "vqa":
        return ClosedVQA(model, model.dim, shape(state, "head.answers.weight", 2)[0])
    if task == "nlvr2":
        return NLVR2(model, model.dim)
    if task == "retrieval":
        return Retrieval(model, model.dim)
    if task == "pretraining":
        return _pretraining(model, {name.split(".")[1] for name in state if name.startswith("heads.")})
    return nn.ModuleDict({"model": model})


def _pretraining(model: ViLT, present: set[str]) -> Pretraining:
    heads = nn.ModuleDict({name: head for name, head in model.pretraining_heads().items() if name in present})
    asked: dict[str, list[Objective]] = {"match": [ITM(), WPA()], "words": [MLM()]}
    return Pretraining(model, heads, [objective for name in heads for objective in asked[name]])


SYSTEM = CheckpointAdapter(
    name="vilt",
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
    model_prefix="state_dict",
    positions=(Absolute("transformer.pos_embed", "model.patches.position", resize_bilinear),),
)
