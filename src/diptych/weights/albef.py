"""ALBEF's official checkpoints: what they tell, and the step that each was trained in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diptych.layers.position import resize_bicubic_plain
from diptych.layers.temperature import Temperature
from diptych.models.albef import ALBEF
from diptych.objectives.draws import Masking
from diptych.objectives.hard import HardMatching
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.mlm import MaskedWords
from diptych.objectives.momentum import Momentum, Queue
from diptych.objectives.pretraining import Pretraining
from diptych.tasks.distilled import Distilled
from diptych.tasks.entailment import Entailment
from diptych.tasks.nlvr2_at_once import NLVR2AtOnce
from diptych.tasks.open_vqa import OpenVQA
from diptych.tasks.text_assignment import TextAssignment
from diptych.weights.albef_names import bert_of, names
from diptych.weights.positions import Absolute
from diptych.weights.read import WeightsError
from diptych.weights.system import (
    Arguments,
    State,
    System,
    Told,
    count,
    has,
    heads_of,
    marked,
    shape,
    student_of,
    vision_grid,
)
from diptych.weights.vit import encoder_shape

LAYERS, CONTEXT_KEY = "text_encoder.encoder.layer", "crossattention.self.key.weight"
WORDS = "embeddings.token_type_embeddings.weight"  # which BLIP's BERT does not have


def task(state: State) -> str:
    """What an officially named checkpoint was trained for. Raises WeightsError."""
    if has(state, "cls_head.2."):
        return "nlvr2" if _paired(state) else "entailment"
    marks = {
        "ta_head.": "assignment",
        f"text_decoder.bert.{WORDS}": "vqa",
        f"text_encoder.bert.{WORDS}": "pretraining",
        "itm_head.": "retrieval",
    }
    if (found := marked(state, marks)) == "encoder":
        raise WeightsError("an ALBEF of no known task: it has neither decoder nor head nor queue")
    return found


def _paired(state: State) -> bool:
    """Whether the fusion layers are there twice, for two images: both of a pair have the same keys. (On meta, where there
    are but shapes, two answers are taken for NLVR2's.)
    """
    layers = range(count(state, LAYERS, "attention.self.query.weight"))
    keys = [state[name] for i in layers if (name := f"{LAYERS}.{i}.{CONTEXT_KEY}") in state]
    if any(key.is_meta for key in keys):
        return len(state["cls_head.2.weight"]) == 2
    return bool(keys) and len(keys) % 2 == 0 and all(map(torch.equal, keys[::2], keys[1::2]))


def infer(state: State, told: Told) -> dict[str, Any]:
    """The arguments of models.albef.ALBEF that an officially named checkpoint was made with. Raises WeightsError."""
    job, vision, language = task(state), told.get("vision", {}), told.get("text", {})
    text = bert_of(job)
    vocabulary, width = shape(state, f"{text}embeddings.word_embeddings.weight", 2)
    image = encoder_shape(
        state, "visual_encoder.", vision.get("heads", told.get("num_heads")), vision_grid(vision, told.get("grid"))
    )
    layers = count(state, f"{text}encoder.layer", "attention.self.query.weight")
    fusion = count(state, f"{text}encoder.layer", "crossattention.self.query.weight")
    images = 2 if job in ("nlvr2", "assignment") else 1
    return {
        **{f"image_{name}": image[name] for name in ("width", "depth", "heads", "hidden")},
        "patch": image["patch"],
        "grid": image["grid"],
        "width": width,
        "text_depth": layers - fusion,
        "fusion_depth": fusion // images,
        "heads": heads_of(width, language.get("num_attention_heads", told.get("num_heads"))),
        "hidden": shape(state, f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "vocabulary": vocabulary,
        "text_length": shape(state, f"{text}embeddings.position_embeddings.weight", 2)[0],
        "images": images,
        "decoder_depth": count(state, "text_decoder.bert.encoder.layer", "attention.self.query.weight"),
        **({"joint": shape(state, "vision_proj.weight", 2)[0]} if has(state, "vision_proj.") else {}),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that a checkpoint (`state`, our names) was trained in: beside its momentum model where it holds that."""
    model, (own, beside) = ALBEF(**arguments), student_of(state)
    if task == "assignment":
        return TextAssignment(model, model.width, nn.Linear(model.image_width, model.joint))
    if task not in ("pretraining", "retrieval"):
        judge = _judging(model, task, own)
        return Distilled(judge) if beside else judge
    student = _pretraining(model) if task == "pretraining" else _retrieval(model)
    return (
        Momentum(student, Queue(*shape(state, "queue.image", 2), identified=task == "retrieval")) if beside else student
    )


def _judging(model: ALBEF, task: str, state: State) -> Entailment | NLVR2AtOnce | OpenVQA:
    if task == "nlvr2":
        return NLVR2AtOnce(model, model.width)
    if task == "vqa":
        return OpenVQA(model, twice=True)
    answers = shape(state, "head.2.weight", 2)[0]
    return Entailment(
        model, nn.Sequential(nn.Linear(model.width, model.width), nn.ReLU(), nn.Linear(model.width, answers))
    )


def _pretraining(model: ALBEF) -> Pretraining:
    masking = Masking(model.vocabulary, whole_words=False)
    return Pretraining(model, model.heads(), [MaskedWords(masking), ImageTextContrast(), HardMatching()])


def _retrieval(model: ALBEF) -> Pretraining:
    heads = model.heads()
    del heads["words"]
    heads["contrast"].scale = Temperature(bounds=None)  # the official code holds it while pre-training only
    return Pretraining(model, heads, [ImageTextContrast(), HardMatching()])


SYSTEM = System(
    name="albef",
    known=lambda state: (
        "visual_encoder.cls_token" in state
        and any(f"{text}{WORDS}" in state for text in ("text_encoder.", "text_encoder.bert."))
    ),
    task=task,
    names=names,
    infer=infer,
    build=build,
    positions=(Absolute("visual_encoder.pos_embed", "model.image.patches.position", resize_bicubic_plain),),
    nest="model",
)
