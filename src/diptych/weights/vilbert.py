"""ViLBERT's weights: sizes read from shapes, and the steps of pre-training and of the downstream model, which has all heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from diptych.heads import Point, Rank, ReLUClassifier, SimpleClassifier
from diptych.models.vilbert import ViLBERT
from diptych.objectives.draws import Hiding, Masking
from diptych.objectives.hiding import RegionMasking
from diptych.objectives.itm import ImageTextMatching
from diptych.objectives.mlm import MaskedWords
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.regions import MaskedRegions, by_class, by_feature
from diptych.step import Step
from diptych.tasks.choice import MultipleChoice
from diptych.tasks.entailment import Entailment
from diptych.tasks.grounding import Grounding
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.several import Several
from diptych.tasks.single import binary_cross_entropy
from diptych.tasks.vqa import ClosedVQA
from diptych.weights.read import WeightsError
from diptych.weights.system import Arguments, State, System, Told, count, has, heads_of, shape
from diptych.weights.vilbert_names import names


def infer(state: State, told: Told) -> dict[str, Any]:
    """The arguments of models.vilbert.ViLBERT. What stands in no shape is told: heads, and the schedule, by the official
    config's names; unless it is, there are heads of 64 in the text and of 128 elsewhere, and the meetings stand before the
    last layers of each stream, as published. Raises WeightsError.
    """
    bert, encoder = "bert.embeddings.", "bert.encoder."
    vocabulary, width = shape(state, f"{bert}word_embeddings.weight", 2)
    image_width, features = shape(state, "bert.v_embeddings.image_embeddings.weight", 2)
    inner = shape(state, "bert.t_pooler.dense.weight", 2)[0]
    depth, image_depth, meetings = (
        count(state, f"{encoder}{stem}", mark)
        for stem, mark in (
            ("layer", "attention.self.query.weight"),
            ("v_layer", "attention.self.query.weight"),
            ("c_layer", "biattention.query1.weight"),
        )
    )
    if not (depth and image_depth):
        raise WeightsError("a stream without layers; is this another model's checkpoint?")
    tasks = f"{bert}task_embeddings.weight"
    targets = "cls.imagePredictions.decoder.weight"
    return {
        "width": width,
        "depth": depth,
        "heads": heads_of(width, told.get("num_attention_heads", told.get("num_heads"))),
        "hidden": shape(state, f"{encoder}layer.0.intermediate.dense.weight", 2)[0],
        "image_width": image_width,
        "image_depth": image_depth,
        "image_heads": _wide_heads(image_width, told.get("v_num_attention_heads")),
        "image_hidden": shape(state, f"{encoder}v_layer.0.intermediate.dense.weight", 2)[0],
        "meeting_width": inner,
        "meeting_heads": _wide_heads(inner, told.get("bi_num_attention_heads")),
        "schedule": _schedule(told, depth, image_depth, meetings),
        "features": features,
        "region_targets": shape(state, targets, 2)[0]
        if has(state, targets.removesuffix("weight"))
        else told.get("v_target_size", 1601),
        "vocabulary": vocabulary,
        "text_length": shape(state, f"{bert}position_embeddings.weight", 2)[0],
        "tasks": shape(state, tasks, 2)[0] if tasks in state else 0,
    }


def _wide_heads(width: int, told: object) -> int:
    """Heads of 128, unless told."""
    return heads_of(width, width // 128 if told is None and width % 128 == 0 else told)


def _schedule(told: Told, depth: int, image_depth: int, meetings: int) -> tuple[tuple[int, int], ...]:
    texts, images = told.get("t_biattention_id"), told.get("v_biattention_id")
    if texts is None or images is None:
        texts, images = range(depth - meetings, depth), range(image_depth - meetings, image_depth)
    if not (_are_places(texts, meetings, depth) and _are_places(images, meetings, image_depth)):
        raise WeightsError(
            f"{meetings} meetings cannot stand before layers {texts!r} of the text and {images!r} of images"
        )
    return tuple(zip(texts, images, strict=True))


def _are_places(ids: object, meetings: int, depth: int) -> bool:
    """Whether these are so many numbers of layers, none before the one in front of it."""
    if not isinstance(ids, Sequence) or len(ids) != meetings or not all(type(i) is int for i in ids):
        return False
    return all(a <= b for a, b in pairwise([0, *ids, depth]))


MARKS = ("vil_", "vision_logit.", "linguisic_logit.")


def task(state: State) -> str:
    """What an officially named checkpoint was trained for; "encoder" where it has no head."""
    if any(name.startswith(MARKS) for name in state):
        return "tasks"
    return "pretraining" if any(name.startswith("cls.") for name in state) else "encoder"


HIDING = Hiding(Masking(whole_words=False), RegionMasking())


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that an imported checkpoint (`state`, our names) was trained in, with the heads that it holds. A model
    without heads stands under "model" alone.

    Where regions are asked for as many numbers as their features have, these are pre-training's target.
    """
    model = ViLBERT(**arguments)
    if task == "encoder":
        return nn.ModuleDict({"model": model})
    present = {name.split(".")[1] for name in state if name.startswith("heads.")}
    heads = nn.ModuleDict({name: head for name, head in model.heads().items() if name in present})
    if task == "pretraining":
        target = by_feature if model.region_targets == arguments["features"] else by_class
        asked: dict[str, Objective] = {
            "words": MaskedWords(HIDING.words, beside=HIDING.image),
            "regions": MaskedRegions(HIDING, target),
            "match": ImageTextMatching(hiding=HIDING),
        }
        return Pretraining(model, heads, [asked[name] for name in heads])
    for name in sorted(present - set(heads)):
        heads[name] = _head(model, name, state)
    return Several(model, heads, {name: STEPS[name](model, head) for name, head in heads.items() if name in STEPS})


def _head(model: ViLBERT, name: str, state: State) -> nn.Module:
    """A downstream head, fresh; the state says how many answers it has."""
    pooled = model.pooled
    if name == "entailment":
        return nn.Linear(pooled, shape(state, "heads.entailment.weight", 2)[0])
    if name == "choice":
        return Rank(pooled)
    if name in ("grounding", "word"):
        return Point(model.image_width if name == "grounding" else model.width, dropout=0.1)
    if f"heads.{name}.main.3.weight" in state:
        hidden, inputs = shape(state, f"heads.{name}.main.0.weight", 2)
        return ReLUClassifier(inputs, hidden, shape(state, f"heads.{name}.main.3.weight", 2)[0])
    images = 2 if name == "nlvr2" else 1
    return SimpleClassifier(images * pooled, 2 * pooled, shape(state, f"heads.{name}.answers.weight", 2)[0])


STEPS: dict[str, Callable[[Any, Any], Step]] = {
    "vqa": lambda model, head: ClosedVQA(model, model.pooled, head.answers.out_features, head, "vqa"),
    "gqa": lambda model, head: ClosedVQA(model, model.pooled, head.answers.out_features, head, "gqa"),
    "nlvr2": lambda model, head: NLVR2(model, model.pooled, head, binary_cross_entropy),
    "choice": MultipleChoice,
    "entailment": lambda model, head: Entailment(model, head, binary_cross_entropy),
    "grounding": Grounding,
}
"""What each downstream head is trained by; of "word" there is no published task."""


SYSTEM = System(
    name="vilbert",
    known=lambda state: "bert.v_embeddings.image_embeddings.weight" in state,
    task=task,
    names=names,
    infer=infer,
    build=build,
)
