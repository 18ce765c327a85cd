"""ViLBERT's official names, of pre-training and of the downstream model, which has all heads at once.

ViLBERT's weights: sizes read from shapes, and the steps of pre-training and of the downstream model, which has all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import Arguments, CheckpointAdapter, OfficialConfig, State, count, has, heads_of, shape
from diptych.checkpoints.mapping import KeyMapping, Transform, fused, prefixed, weight_and_bias
from diptych.checkpoints.read import WeightsError
from diptych.models.vilbert.model import ViLBERT
from diptych.modules.heads import GroundingHead, RankingHead, ReLUClassifier, SimpleClassifier
from diptych.objectives.itm import ITM
from diptych.objectives.masked_regions import MaskedRegions, class_target, feature_target
from diptych.objectives.masking import RegionMasking
from diptych.objectives.mlm import MLM
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.sampling import PairMasking, WordMasking
from diptych.protocols import TrainStep
from diptych.tasks.common import binary_cross_entropy
from diptych.tasks.entailment import Entailment
from diptych.tasks.grounding import Grounding
from diptych.tasks.multitask import MultiTask
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.vcr import MultipleChoice
from diptych.tasks.vqa import ClosedVQA

SWAPPED = Transform(
    lambda rows: rows.flip(0), lambda rows: rows.flip(0)
)  # there the first logit says that they belong together
UNREAD = "no forward pass reads it"

SELF = (
    fused([f"attention.self.{part}" for part in ("query", "key", "value")], "attention.qkv")
    | weight_and_bias("attention.output.dense", "attention.out")
    | weight_and_bias("attention.output.LayerNorm", "norm1")
    | weight_and_bias("intermediate.dense", "feedforward.grow")
    | weight_and_bias("output.dense", "feedforward.shrink")
    | weight_and_bias("output.LayerNorm", "norm2")
)
"""Within ``layer.N.`` and ``v_layer.N.``, and ours."""


def _half(own: int, other: int, mark: str) -> dict[str, str]:
    """Within ``c_layer.N.``: the half of stream number `own` (1: image, 2: text), which asks the `other`."""
    return (
        weight_and_bias(f"biattention.query{own}", "attention.query")
        | weight_and_bias(f"biattention.key{other}", "attention.key")
        | weight_and_bias(f"biattention.value{other}", "attention.value")
        | weight_and_bias(f"biOutput.dense{own}", "attention.out")
        | weight_and_bias(f"biOutput.LayerNorm{own}", "norm1")
        | weight_and_bias(f"{mark}_intermediate.dense", "feedforward.grow")
        | weight_and_bias(f"{mark}_output.dense", "feedforward.shrink")
        | weight_and_bias(f"{mark}_output.LayerNorm", "norm2")
    )


MEETING = prefixed("", "text.", _half(2, 1, "t")) | prefixed("", "image.", _half(1, 2, "v"))

OUTSIDE = {
    "bert.embeddings.word_embeddings.weight": "model.words.word.weight",
    "bert.embeddings.position_embeddings.weight": "model.words.position.weight",
    "bert.embeddings.token_type_embeddings.weight": "model.words.segment.weight",
    **weight_and_bias("bert.embeddings.LayerNorm", "model.words.norm"),
    "bert.embeddings.task_embeddings.weight": "model.task.weight",
    **weight_and_bias("bert.v_embeddings.image_embeddings", "model.regions.feature"),
    **weight_and_bias("bert.v_embeddings.image_location_embeddings", "model.regions.box"),
    **weight_and_bias("bert.v_embeddings.LayerNorm", "model.regions.norm"),
    **weight_and_bias("bert.t_pooler.dense", "model.streams.pooler.text"),
    **weight_and_bias("bert.v_pooler.dense", "model.streams.pooler.image"),
}


def _classifier(official: str, ours: str) -> dict[str, str]:
    parts = weight_and_bias("0", "dense") | weight_and_bias("2", "norm") | weight_and_bias("3", "answers")
    return prefixed(f"{official}.logit_fc.", f"{ours}.", parts)


NORMED = tuple(f"vil_prediction.main.{layer}.weight" for layer in (0, 3))
"""The answers' head of the first release (vilbert_beta), which is weight-normed."""

HEADS = {
    **prefixed(
        "vil_prediction.", "heads.vqa.", weight_and_bias("main.0", "main.0") | weight_and_bias("main.3", "main.3")
    ),
    **weight_and_bias("cls.predictions.transform.dense", "heads.words.dense"),
    **weight_and_bias("cls.predictions.transform.LayerNorm", "heads.words.norm"),
    "cls.predictions.bias": "heads.words.bias",
    **weight_and_bias("cls.bi_seq_relationship", "heads.match.linear"),
    **weight_and_bias("cls.imagePredictions.transform.dense", "heads.regions.dense"),
    **weight_and_bias("cls.imagePredictions.transform.LayerNorm", "heads.regions.norm"),
    **weight_and_bias("cls.imagePredictions.decoder", "heads.regions.targets"),
    **_classifier("vil_prediction", "heads.vqa"),
    **_classifier("vil_prediction_gqa", "heads.gqa"),
    **_classifier("vil_binary_prediction", "heads.nlvr2"),
    **weight_and_bias("vil_logit", "heads.choice.linear"),
    **weight_and_bias("vil_tri_prediction", "heads.entailment"),
    **weight_and_bias("vision_logit", "heads.grounding.linear"),
    **weight_and_bias("linguisic_logit", "heads.word.linear"),
}


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names that a checkpoint is read and written by."""
    table = OUTSIDE | HEADS
    for i in range(arguments["depth"]):
        table |= prefixed(f"bert.encoder.layer.{i}.", f"model.streams.text.{i}.", SELF)
    for i in range(arguments["image_depth"]):
        table |= prefixed(f"bert.encoder.v_layer.{i}.", f"model.streams.image.{i}.", SELF)
    meetings = range(len(arguments["schedule"]))
    for i in meetings:
        table |= prefixed(f"bert.encoder.c_layer.{i}.", f"model.streams.meetings.{i}.", MEETING)
    unread = [f"bert.encoder.c_layer.{i}.biOutput.q_dense{stream}" for i in meetings for stream in (1, 2)]
    return KeyMapping(
        table,
        ignored={f"{layer}.{kind}": UNREAD for layer in unread for kind in ("weight", "bias")},
        tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
        forms=dict.fromkeys(weight_and_bias("cls.bi_seq_relationship", ""), SWAPPED),
        normed=NORMED,
    )


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
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
        "dim": width,
        "depth": depth,
        "num_heads": heads_of(width, told.get("num_attention_heads", told.get("num_heads"))),
        "mlp_dim": shape(state, f"{encoder}layer.0.intermediate.dense.weight", 2)[0],
        "image_dim": image_width,
        "image_depth": image_depth,
        "image_num_heads": _wide_heads(image_width, told.get("v_num_attention_heads")),
        "image_mlp_dim": shape(state, f"{encoder}v_layer.0.intermediate.dense.weight", 2)[0],
        "coattention_dim": inner,
        "coattention_num_heads": _wide_heads(inner, told.get("bi_num_attention_heads")),
        "schedule": _schedule(told, depth, image_depth, meetings),
        "feature_dim": features,
        "num_region_targets": shape(state, targets, 2)[0]
        if has(state, targets.removesuffix("weight"))
        else told.get("v_target_size", 1601),
        "vocab_size": vocabulary,
        "text_length": shape(state, f"{bert}position_embeddings.weight", 2)[0],
        "tasks": shape(state, tasks, 2)[0] if tasks in state else 0,
    }


def _wide_heads(dim: int, told: object) -> int:
    """Heads of 128, unless told."""
    return heads_of(dim, dim // 128 if told is None and dim % 128 == 0 else told)


def _schedule(told: OfficialConfig, depth: int, image_depth: int, meetings: int) -> tuple[tuple[int, int], ...]:
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


HIDING = PairMasking(WordMasking(whole_words=False), RegionMasking())


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that an imported checkpoint (`state`, our names) was trained in, with the heads that it holds. A model
    without heads stands under "model" alone.

    Where regions are asked for as many numbers as their features have, these are pre-training's target.
    """
    model = ViLBERT(**arguments)
    if task == "encoder":
        return nn.ModuleDict({"model": model})
    present = {name.split(".")[1] for name in state if name.startswith("heads.")}
    heads = nn.ModuleDict({name: head for name, head in model.pretraining_heads().items() if name in present})
    if task == "pretraining":
        target = feature_target if model.num_region_targets == arguments["feature_dim"] else class_target
        asked: dict[str, Objective] = {
            "words": MLM(HIDING.words, beside=HIDING.image),
            "regions": MaskedRegions(HIDING, target),
            "match": ITM(hiding=HIDING),
        }
        return Pretraining(model, heads, [asked[name] for name in heads])
    for name in sorted(present - set(heads)):
        heads[name] = _head(model, name, state)
    return MultiTask(model, heads, {name: STEPS[name](model, head) for name, head in heads.items() if name in STEPS})


def _head(model: ViLBERT, name: str, state: State) -> nn.Module:
    """A downstream head, fresh; the state says how many answers it has."""
    pooled = model.pooled
    if name == "entailment":
        return nn.Linear(pooled, shape(state, "heads.entailment.weight", 2)[0])
    if name == "choice":
        return RankingHead(pooled)
    if name in ("grounding", "word"):
        return GroundingHead(model.image_dim if name == "grounding" else model.dim, dropout=0.1)
    if f"heads.{name}.main.3.weight" in state:
        hidden, inputs = shape(state, f"heads.{name}.main.0.weight", 2)
        return ReLUClassifier(inputs, hidden, shape(state, f"heads.{name}.main.3.weight", 2)[0])
    images = 2 if name == "nlvr2" else 1
    return SimpleClassifier(images * pooled, 2 * pooled, shape(state, f"heads.{name}.answers.weight", 2)[0])


STEPS: dict[str, Callable[[Any, Any], TrainStep]] = {
    "vqa": lambda model, head: ClosedVQA(model, model.pooled, head.answers.out_features, head, "vqa"),
    "gqa": lambda model, head: ClosedVQA(model, model.pooled, head.answers.out_features, head, "gqa"),
    "nlvr2": lambda model, head: NLVR2(model, model.pooled, head, binary_cross_entropy),
    "choice": MultipleChoice,
    "entailment": lambda model, head: Entailment(model, head, binary_cross_entropy),
    "grounding": Grounding,
}
"""What each downstream head is trained by; of "word" there is no published task."""


SYSTEM = CheckpointAdapter(
    name="vilbert",
    matches=lambda state: "bert.v_embeddings.image_embeddings.weight" in state,
    task=task,
    names=names,
    infer=infer,
    build=build,
)
