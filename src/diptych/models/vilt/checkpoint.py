"""ViLT's weights: the official names, for pre-training and each downstream task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, State, System, Told, marked, shape
from diptych.checkpoints.mapping import FLAT, Names, both, under
from diptych.checkpoints.positions import Absolute
from diptych.models.vilt.model import ViLT
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.modules.position import resize_bilinear
from diptych.objectives.itm import ImageTextMatching
from diptych.objectives.mlm import MaskedWords
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.wpa import WordPatchAlignment
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vqa import ClosedVQA

AROUND = Names(
    {
        "text_embeddings.word_embeddings.weight": "model.words.word.weight",
        "text_embeddings.position_embeddings.weight": "model.words.position.weight",
        "text_embeddings.token_type_embeddings.weight": "model.words.segment.weight",
        **both("text_embeddings.LayerNorm", "model.words.norm"),
        "token_type_embeddings.weight": "model.modality.weight",
        **under("transformer.", "model.", PATCHES),
        **both("transformer.norm", "model.transformer.norm"),
        **both("pooler.dense", "model.transformer.pooler.dense"),
    },
    dead={"text_embeddings.position_ids": "a buffer of 0, 1, 2 …, not a weight"},
    forms={"transformer.patch_embed.proj.weight": FLAT},
)
"""What stands around the blocks, and is called alike in VLMo's code, which began as ViLT's."""
MODEL = AROUND | Names(under("transformer.", "model.transformer.", BLOCK))
HEADS = Names(
    both("itm_score.fc", "heads.match.linear")
    | both("mlm_score.transform.dense", "heads.words.dense")
    | both("mlm_score.transform.LayerNorm", "heads.words.norm")
    | {"mlm_score.decoder.weight": "heads.words.words.weight", "mlm_score.bias": "heads.words.bias"}
)


def classifier(official: str) -> Names:
    """A task's head."""
    return Names(
        both(f"{official}.0", "head.dense") | both(f"{official}.1", "head.norm") | both(f"{official}.3", "head.answers")
    )


FROZEN = "frozen while fine-tuning, where nothing reads it; rank_output began as its row 1"
NAMES = {
    "pretraining": MODEL | HEADS,
    "vqa": MODEL | classifier("vqa_classifier"),
    "nlvr2": MODEL | classifier("nlvr2_classifier"),
    "retrieval": MODEL
    | Names(both("rank_output", "rank.linear"), dead={"itm_score.fc.weight": FROZEN, "itm_score.fc.bias": FROZEN}),
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
    return marked(state, MARKS)


def names(arguments: Arguments, task: str) -> Names:
    """The table of names that a checkpoint is read and written by."""
    return NAMES[task]


def infer(state: State, told: Told) -> dict[str, Any]:
    """The arguments of models.vilt.ViLT that an officially named checkpoint was made with. Raises WeightsError."""
    return encoder_shape(
        state, "transformer.", told.get("num_heads", told.get("num_attention_heads")), told.get("grid")
    ) | {
        "vocabulary": shape(state, "text_embeddings.word_embeddings.weight", 2)[0],
        "text_length": shape(state, "text_embeddings.position_embeddings.weight", 2)[0],
        "images": shape(state, "token_type_embeddings.weight", 2)[0] - 1,
    }


def build(arguments: Mapping[str, Any], task: str, state: State) -> nn.Module:
    """The step that an imported checkpoint (`state`, our names) was trained in; a pre-training one has the heads that
    the checkpoint holds, and their objectives. A model without heads stands under "model" alone.
    """
    model = ViLT(**arguments)
    if task == "vqa":
        return ClosedVQA(model, model.width, shape(state, "head.answers.weight", 2)[0])
    if task == "nlvr2":
        return NLVR2(model, model.width)
    if task == "retrieval":
        return Retrieval(model, model.width)
    if task == "pretraining":
        return _pretraining(model, {name.split(".")[1] for name in state if name.startswith("heads.")})
    return nn.ModuleDict({"model": model})


def _pretraining(model: ViLT, present: set[str]) -> Pretraining:
    heads = nn.ModuleDict({name: head for name, head in model.heads().items() if name in present})
    asked: dict[str, list[Objective]] = {"match": [ImageTextMatching(), WordPatchAlignment()], "words": [MaskedWords()]}
    return Pretraining(model, heads, [objective for name in heads for objective in asked[name]])


SYSTEM = System(
    name="vilt",
    known=lambda state: (
        "transformer.patch_embed.proj.weight" in state
        and "transformer.cls_token" in state
        and "text_embeddings.token_type_embeddings.weight" in state
        and "transformer.blocks.0.mlp.fc1.weight" in state
    ),
    task=task,
    names=names,
    infer=infer,
    build=build,
    nest="state_dict",
    positions=(Absolute("transformer.pos_embed", "model.patches.position", resize_bilinear),),
)
