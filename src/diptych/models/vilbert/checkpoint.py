"""ViLBERT's official checkpoints: weight names, sizes inferred from shapes, and the training steps.

There are two kinds: pre-training, and the downstream model, which has the heads of all tasks at once. Of vilbert_beta's
downstream files each was fine-tuned for one task, and only the head of that task is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    State,
    config_of,
    count_layers,
    has_prefix,
    infer_num_heads,
    shape_of,
)
from diptych.checkpoints.mapping import KeyMapping, Transform, concat_layers, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.read import WeightsError
from diptych.config.objectives import RegionMasking
from diptych.models.vilbert.config import ViLBERTConfig
from diptych.models.vilbert.model import ViLBERT
from diptych.modules.heads import GroundingHead, RankingHead, ReLUClassifier, SimpleClassifier
from diptych.objectives.itm import ITMLoss
from diptych.objectives.masked_regions import MaskedRegionLoss, class_target, feature_target
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.random_choices import PairMasking, WordMasking
from diptych.protocols import TrainStep
from diptych.tasks.common import binary_cross_entropy
from diptych.tasks.entailment import Entailment
from diptych.tasks.grounding import Grounding
from diptych.tasks.multitask import MultiTask
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import Retrieval
from diptych.tasks.vcr import MultipleChoice
from diptych.tasks.vqa import ClosedVQA

SWAPPED = Transform(
    lambda rows: rows.flip(0), lambda rows: rows.flip(0)
)  # there the first logit says that they belong together
UNUSED = "no forward pass uses it"

SELF = (
    concat_layers([f"attention.self.{part}" for part in ("query", "key", "value")], "attention.qkv")
    | weight_and_bias("attention.output.dense", "attention.out")
    | weight_and_bias("attention.output.LayerNorm", "norm1")
    | weight_and_bias("intermediate.dense", "feedforward.fc1")
    | weight_and_bias("output.dense", "feedforward.fc2")
    | weight_and_bias("output.LayerNorm", "norm2")
)
"""A block of one stream: names within ``layer.N.`` and ``v_layer.N.``, and ours."""


def _half(own: int, other: int, letter: str) -> dict[str, str]:
    """One half of a co-attention block, within ``c_layer.N.``: queries from stream `own` (1: image, 2: text), keys and
    values from stream `other`; `letter`: the official prefix of the stream's feed-forward network.
    """
    return (
        weight_and_bias(f"biattention.query{own}", "attention.query")
        | weight_and_bias(f"biattention.key{other}", "attention.key")
        | weight_and_bias(f"biattention.value{other}", "attention.value")
        | weight_and_bias(f"biOutput.dense{own}", "attention.out")
        | weight_and_bias(f"biOutput.LayerNorm{own}", "norm1")
        | weight_and_bias(f"{letter}_intermediate.dense", "feedforward.fc1")
        | weight_and_bias(f"{letter}_output.dense", "feedforward.fc2")
        | weight_and_bias(f"{letter}_output.LayerNorm", "norm2")
    )


COATTENTION = prefixed("", "text.", _half(2, 1, "t")) | prefixed("", "image.", _half(1, 2, "v"))

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
"""Weight-normed layers of the answer head in the first release (vilbert_beta)."""

HEADS = {
    **prefixed(
        "vil_prediction.", "heads.vqa.", weight_and_bias("main.0", "main.0") | weight_and_bias("main.3", "main.3")
    ),
    **weight_and_bias("cls.predictions.transform.dense", "heads.mlm.dense"),
    **weight_and_bias("cls.predictions.transform.LayerNorm", "heads.mlm.norm"),
    "cls.predictions.bias": "heads.mlm.bias",
    **weight_and_bias("cls.bi_seq_relationship", "heads.itm.linear"),
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


HEADS_OF_TASKS = {"vqa": "heads.vqa.main.", "retrieval": "heads.choice.", "grounding": "heads.grounding."}
"""The head of each task that a downstream file can be imported for alone; of VQA, that of the first release."""
OWN_HEADS = {"vqa": "head.main.", "retrieval": "rank.", "grounding": "head."}
"""Its name in the training step of the task."""
OTHER_HEAD = "the head of another task"


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments.

    For one task of `HEADS_OF_TASKS` the heads of all others are ignored.
    """
    table = OUTSIDE | HEADS
    for i in range(arguments["depth"]):
        table |= prefixed(f"bert.encoder.layer.{i}.", f"model.streams.text.{i}.", SELF)
    for i in range(arguments["image_depth"]):
        table |= prefixed(f"bert.encoder.v_layer.{i}.", f"model.streams.image.{i}.", SELF)
    coattention = range(len(arguments["schedule"]))
    for i in coattention:
        table |= prefixed(f"bert.encoder.c_layer.{i}.", f"model.streams.meetings.{i}.", COATTENTION)
    unused = [f"bert.encoder.c_layer.{i}.biOutput.q_dense{stream}" for i in coattention for stream in (1, 2)]
    every_head = KeyMapping(
        table,
        ignored={f"{layer}.{kind}": UNUSED for layer in unused for kind in ("weight", "bias")},
        tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
        transforms=dict.fromkeys(weight_and_bias("cls.bi_seq_relationship", ""), SWAPPED),
        weight_normed=NORMED,
    )
    return _with_one_head(every_head, task) if task in HEADS_OF_TASKS else every_head


def _with_one_head(table: KeyMapping, task: str) -> KeyMapping:
    """The table of one task's training step; a weight-normed head that is ignored stays as it is in the file."""
    head = HEADS_OF_TASKS[task]
    others = [name for name, our in table.ours.items() if our.startswith("heads.") and not our.startswith(head)]
    if task != "vqa":
        others += [f"{name}_{part}" for name in table.weight_normed for part in ("g", "v")]
    ours = {
        official: our.replace(head, OWN_HEADS[task], 1) if our.startswith(head) else our
        for official, our in table.ours.items()
        if official not in others
    }
    return KeyMapping(
        ours,
        ignored={**table.ignored, **dict.fromkeys(others, OTHER_HEAD)},
        tied=table.tied,
        weight_normed=table.weight_normed if task == "vqa" else (),
    )


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of ViLBERT for a checkpoint under official names. Raises WeightsError.

    Numbers of heads and the schedule of co-attention cannot be inferred from shapes: they are read from the config
    under the official keys. By default, as published, heads are 64 wide in the text stream and 128 elsewhere, and the
    co-attention blocks come before the last layers of each stream.
    """
    bert, encoder = "bert.embeddings.", "bert.encoder."
    vocabulary, width = shape_of(state, f"{bert}word_embeddings.weight", 2)
    image_width, features = shape_of(state, "bert.v_embeddings.image_embeddings.weight", 2)
    inner = shape_of(state, "bert.t_pooler.dense.weight", 2)[0]
    depth, image_depth, num_coattention = (
        count_layers(state, f"{encoder}{stem}", weight)
        for stem, weight in (
            ("layer", "attention.self.query.weight"),
            ("v_layer", "attention.self.query.weight"),
            ("c_layer", "biattention.query1.weight"),
        )
    )
    if not (depth and image_depth):
        raise WeightsError(
            f"{depth} layers in the text stream and {image_depth} in the image stream; expected at least one in each; "
            "is this another model's checkpoint?"
        )
    tasks = f"{bert}task_embeddings.weight"
    targets = "cls.imagePredictions.decoder.weight"
    return {
        "dim": width,
        "depth": depth,
        "num_heads": infer_num_heads(width, config, "num_heads", "num_attention_heads", "num_heads"),
        "mlp_dim": shape_of(state, f"{encoder}layer.0.intermediate.dense.weight", 2)[0],
        "image_dim": image_width,
        "image_depth": image_depth,
        "image_num_heads": _image_num_heads(image_width, config, "image_num_heads", "v_num_attention_heads"),
        "image_mlp_dim": shape_of(state, f"{encoder}v_layer.0.intermediate.dense.weight", 2)[0],
        "coattention_dim": inner,
        "coattention_num_heads": _image_num_heads(inner, config, "coattention_num_heads", "bi_num_attention_heads"),
        "schedule": _schedule(config, depth, image_depth, num_coattention),
        "feature_dim": features,
        "num_region_targets": shape_of(state, targets, 2)[0]
        if has_prefix(state, targets.removesuffix("weight"))
        else stated(config, "num_region_targets", "v_target_size") or 1601,
        "vocab_size": vocabulary,
        "text_length": shape_of(state, f"{bert}position_embeddings.weight", 2)[0],
        "num_tasks": shape_of(state, tasks, 2)[0] if tasks in state else 0,
    }


def _image_num_heads(dim: int, config: OfficialConfig, argument: str, key: str) -> int:
    """The number of heads, by default one for every 128 features. Raises WeightsError."""
    return infer_num_heads(dim, config, argument, key, published=dim // 128 if dim % 128 == 0 else None)


def _schedule(config: OfficialConfig, depth: int, image_depth: int, count: int) -> tuple[tuple[int, int], ...]:
    """(text layer, image layer) before which each of `count` co-attention blocks is placed. Raises WeightsError."""
    texts, images = config.get("t_biattention_id"), config.get("v_biattention_id")
    if explicit := stated(config, "schedule"):
        texts, images = (list(layers) for layers in zip(*explicit, strict=True))
    if texts is None or images is None:
        texts, images = range(depth - count, depth), range(image_depth - count, image_depth)
    if not (_are_layers(texts, count, depth) and _are_layers(images, count, image_depth)):
        raise WeightsError(
            f"{count} co-attention blocks cannot be placed before text layers {texts!r} and image layers {images!r}; "
            f"expected {count} increasing numbers, at most {depth} (t_biattention_id) and {image_depth} "
            "(v_biattention_id)"
        )
    return tuple(zip(texts, images, strict=True))


def _are_layers(ids: object, count: int, depth: int) -> bool:
    """Whether `ids` is a non-decreasing sequence of `count` integers in [0, depth]."""
    if not isinstance(ids, Sequence) or len(ids) != count or not all(type(i) is int for i in ids):
        return False
    return all(a <= b for a, b in pairwise([0, *ids, depth]))


TASK_HEADS = ("vil_", "vision_logit.", "linguisic_logit.")
"""Prefixes of the downstream heads."""


def task(state: State) -> str:
    """The task that a checkpoint under official names was trained for; "encoder" if it has no head."""
    if any(name.startswith(TASK_HEADS) for name in state):
        return "tasks"
    return "pretraining" if any(name.startswith("cls.") for name in state) else "encoder"


MASKING = PairMasking(WordMasking(whole_words=False), RegionMasking())


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint (`state` under our names) with its heads; without any, the model under "model".

    In pre-training, a region head as wide as the region features is trained to predict these, not classes.
    """
    model = config_of(ViLBERTConfig, arguments).build()
    if task == "encoder":
        return nn.ModuleDict({"model": model})
    if task in HEADS_OF_TASKS:
        return _one_task(model, task, state)
    present = {name.split(".")[1] for name in state if name.startswith("heads.")}
    heads = nn.ModuleDict({name: head for name, head in model.pretraining_heads().items() if name in present})
    if task == "pretraining":
        target = feature_target if model.num_region_targets == arguments["feature_dim"] else class_target
        objectives: dict[str, Objective] = {
            "mlm": MLMLoss(MASKING.words, image_masking=MASKING.image),
            "regions": MaskedRegionLoss(MASKING, target),
            "itm": ITMLoss(masking=MASKING),
        }
        return Pretraining(model, heads, [objectives[name] for name in heads])
    for name in sorted(present - set(heads)):
        heads[name] = _head(model, name, state, f"heads.{name}.")
    return MultiTask(model, heads, {name: STEPS[name](model, head) for name, head in heads.items() if name in STEPS})


def _one_task(model: Any, task: str, state: State) -> nn.Module:
    """The training step of one task of `HEADS_OF_TASKS`."""
    if task == "retrieval":
        return Retrieval(model, model.pooled_dim)
    step: Any = STEPS[task](model, _head(model, task, state, "head."))
    return step


def _head(model: ViLBERT, name: str, state: State, prefix: str) -> nn.Module:
    """A new downstream head; the number of its classes is read from the state, where its names begin with `prefix`."""
    pooled = model.pooled_dim
    if name == "entailment":
        return nn.Linear(pooled, shape_of(state, f"{prefix}weight", 2)[0])
    if name == "choice":
        return RankingHead(pooled)
    if name in ("grounding", "word"):
        return GroundingHead(model.image_dim if name == "grounding" else model.dim, dropout=0.1)
    if f"{prefix}main.3.weight" in state:
        hidden, inputs = shape_of(state, f"{prefix}main.0.weight", 2)
        return ReLUClassifier(inputs, hidden, shape_of(state, f"{prefix}main.3.weight", 2)[0])
    images = 2 if name == "nlvr2" else 1
    return SimpleClassifier(images * pooled, 2 * pooled, shape_of(state, f"{prefix}answers.weight", 2)[0])


STEPS: dict[str, Callable[[Any, Any], TrainStep]] = {
    "vqa": lambda model, head: ClosedVQA(model, model.pooled_dim, head.answers.out_features, head, "vqa"),
    "gqa": lambda model, head: ClosedVQA(model, model.pooled_dim, head.answers.out_features, head, "gqa"),
    "nlvr2": lambda model, head: NLVR2(model, model.pooled_dim, head, binary_cross_entropy),
    "choice": MultipleChoice,
    "entailment": lambda model, head: Entailment(model, head, binary_cross_entropy),
    "grounding": Grounding,
}
"""The training step of each downstream head; there is no published task for "word"."""


ADAPTER = CheckpointAdapter(
    name="vilbert",
    config_class=ViLBERTConfig,
    matches=lambda state: "bert.v_embeddings.image_embeddings.weight" in state,
    task=task,
    names=names,
    infer=infer,
    build=build,
    heads_of_tasks={"vqa": "vil_prediction.main.", "retrieval": "vil_logit.", "grounding": "vision_logit."},
    fixed={
        "fusion_method": ("mul",),
        "hidden_act": ("gelu",),
        "v_hidden_act": ("gelu",),
        "dynamic_attention": (False,),
    },
)
