"""ALBEF's official checkpoints: weight names, sizes inferred from shapes, and the training step of each task."""

from __future__ import annotations

from typing import Any

import torch
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
    split_teacher,
    task_by_prefix,
)
from diptych.checkpoints.bert import CROSS_ATTENTION, LAYER, TEXT_EMBEDDING
from diptych.checkpoints.mapping import CONV_AS_LINEAR, SQUEEZED, TRANSPOSED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.positions import AbsolutePositions
from diptych.checkpoints.read import WeightsError
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.modules.heads import Temperature
from diptych.modules.position import resize_bicubic_plain
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import WordMasking
from diptych.tasks.entailment import Entailment
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.nlvr2 import NLVR2Joint, TextAssignment
from diptych.tasks.open_vqa import OpenVQA

NO_WEIGHT = "a buffer of 0, 1, 2 …, not a weight"
UNUSED = "left over from pre-training; text assignment does not use it"
SHARED = [f"crossattention.self.{part}.{kind}" for part in ("key", "value") for kind in ("weight", "bias")]


def bert_of(task: str) -> str:
    """The prefix of the text encoder's official names."""
    return "text_encoder.bert." if task == "pretraining" else "text_encoder."


def _words(official: str, ours: str) -> KeyMapping:
    table = TEXT_EMBEDDING | {"token_type_embeddings.weight": "segment.weight"}
    return KeyMapping(prefixed(official, ours, table), ignored={f"{official}position_ids": NO_WEIGHT})


def _vocabulary(official: str, ours: str, words: str) -> KeyMapping:
    """An MLM or answer head, whose output layer is tied to the word embedding `words` (an official name)."""
    return KeyMapping(
        weight_and_bias(f"{official}transform.dense", f"{ours}dense")
        | weight_and_bias(f"{official}transform.LayerNorm", f"{ours}norm")
        | {f"{official}bias": f"{ours}bias"},
        tied={f"{official}decoder.weight": words, f"{official}decoder.bias": f"{official}bias"},
    )


def _encoders(arguments: Arguments, task: str, suffix: str, ours: str) -> KeyMapping:
    """The image encoder, and the text and multimodal encoders, which the official code keeps as one BERT.

    Args:
        suffix: of the official modules: "_m" for the momentum model.
        ours: the prefix of our names.
    """
    image = f"visual_encoder{suffix}."
    text = bert_of(task).replace("text_encoder", f"text_encoder{suffix}")
    depth, images = arguments["text_depth"], arguments["num_images"]
    table: dict[str, str] = {}
    tied: dict[str, str] = {}
    for i in range(depth):
        table |= prefixed(f"{text}encoder.layer.{i}.", f"{ours}text.{i}.", LAYER)
    for i in range(arguments["fusion_depth"]):
        first = depth + i * images
        for j in range(images):
            layer = f"{text}encoder.layer.{first + j}."
            table |= prefixed(layer, f"{ours}fusion.{i}.{j}.", LAYER | CROSS_ATTENTION)
            tied |= {f"{layer}{name}": f"{text}encoder.layer.{first}.{name}" for name in SHARED if j}
    table = {name: our for name, our in table.items() if name not in tied}
    vit = prefixed(image, f"{ours}image.", {**PATCHES, **BLOCK, **weight_and_bias("norm", "norm")})
    transforms = {f"{image}patch_embed.proj.weight": CONV_AS_LINEAR}
    return KeyMapping(vit | table, tied=tied, transforms=transforms) | _words(f"{text}embeddings.", f"{ours}words.")


def _decoder(suffix: str, ours: str, depth: int) -> KeyMapping:
    official = f"text_decoder{suffix}."
    table: dict[str, str] = {}
    for i in range(depth):
        table |= prefixed(f"{official}bert.encoder.layer.{i}.", f"{ours}decoder.{i}.", LAYER | CROSS_ATTENTION)
    words = f"{official}bert.embeddings."
    head = _vocabulary(f"{official}cls.predictions.", f"{ours}answer_head.", f"{words}word_embeddings.weight")
    return KeyMapping(table) | _words(words, f"{ours}answer_words.") | head


def _step_names(arguments: Arguments, task: str, suffix: str, ours: str) -> KeyMapping:
    """The student (`suffix` "") or the momentum teacher ("_m") of a task, with the heads that both have."""
    table = _encoders(arguments, task, suffix, f"{ours}model.")
    if task in ("pretraining", "retrieval"):
        table |= KeyMapping(
            weight_and_bias(f"vision_proj{suffix}", f"{ours}heads.itc.image")
            | weight_and_bias(f"text_proj{suffix}", f"{ours}heads.itc.text")
        )
    if task == "pretraining":
        words = f"text_encoder{suffix}.bert.embeddings.word_embeddings.weight"
        table |= _vocabulary(f"text_encoder{suffix}.cls.predictions.", f"{ours}heads.mlm.", words)
    if task == "vqa":
        table |= _decoder(suffix, f"{ours}model.", arguments["decoder_depth"])
    if task in ("nlvr2", "entailment"):
        for layer in (0, 2):
            table |= KeyMapping(weight_and_bias(f"cls_head{suffix}.{layer}", f"{ours}head.{layer}"))
    return table


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments, trained for this task."""
    if task == "assignment":
        unused = {name: UNUSED for name in ("text_proj.weight", "text_proj.bias", "temp")}
        heads = weight_and_bias("vision_proj", "project") | weight_and_bias("ta_head", "head")
        return _step_names(arguments, task, "", "") | KeyMapping(heads, ignored=unused)
    table = _step_names(arguments, task, "", "student.") | _step_names(arguments, task, "_m", "teacher.")
    if task not in ("pretraining", "retrieval"):
        return table
    rows = {"idx_queue": "queue.identity"} if task == "retrieval" else {}
    return table | KeyMapping(
        weight_and_bias("itm_head", "student.heads.itm.linear")
        | {"temp": "student.heads.itc.scale.value", "queue_ptr": "queue.place"}
        | {"image_queue": "queue.image", "text_queue": "queue.text"}
        | rows,
        transforms={"image_queue": TRANSPOSED, "text_queue": TRANSPOSED} | dict.fromkeys(rows, SQUEEZED),
    )


LAYERS, CONTEXT_KEY = "text_encoder.encoder.layer", "crossattention.self.key.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"  # BLIP's BERT has none


def task(state: State) -> str:
    """The task that a checkpoint under official names was trained for. Raises WeightsError."""
    if has_prefix(state, "cls_head.2."):
        return "nlvr2" if _paired(state) else "entailment"
    prefixes = {
        "ta_head.": "assignment",
        f"text_decoder.bert.{TOKEN_TYPES}": "vqa",
        f"text_encoder.bert.{TOKEN_TYPES}": "pretraining",
        "itm_head.": "retrieval",
    }
    if (task := task_by_prefix(state, prefixes)) == "encoder":
        raise WeightsError("an ALBEF of no known task: it has neither decoder nor head nor queue")
    return task


def _paired(state: State) -> bool:
    """Whether each multimodal layer occurs twice, for two images: both of a pair have equal key weights.

    On the meta device, which stores no values, a head of two classes decides.
    """
    layers = range(count_layers(state, LAYERS, "attention.self.query.weight"))
    keys = [state[name] for i in layers if (name := f"{LAYERS}.{i}.{CONTEXT_KEY}") in state]
    if any(key.is_meta for key in keys):
        return len(state["cls_head.2.weight"]) == 2
    return bool(keys) and len(keys) % 2 == 0 and all(map(torch.equal, keys[::2], keys[1::2]))


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of ALBEF for a checkpoint under official names. Raises WeightsError."""
    trained_for = task(state)
    text = bert_of(trained_for)
    vocabulary, width = shape_of(state, f"{text}embeddings.word_embeddings.weight", 2)
    image = encoder_shape(state, "visual_encoder.", config, "image_num_heads", "vision.heads", "num_heads")
    layers = count_layers(state, f"{text}encoder.layer", "attention.self.query.weight")
    fusion = count_layers(state, f"{text}encoder.layer", "crossattention.self.query.weight")
    images = 2 if trained_for in ("nlvr2", "assignment") else 1
    embed_dim = stated(config, "embed_dim", "embed_dim")
    if has_prefix(state, "vision_proj."):
        embed_dim = shape_of(state, "vision_proj.weight", 2)[0]
    return {
        **{f"image_{name}": image[name] for name in ("dim", "depth", "num_heads", "mlp_dim")},
        "patch_size": image["patch_size"],
        "grid": image["grid"],
        "dim": width,
        "text_depth": layers - fusion,
        "fusion_depth": fusion // images,
        "num_heads": infer_num_heads(width, config, "num_heads", "text.num_attention_heads", "num_heads"),
        "mlp_dim": shape_of(state, f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "vocab_size": vocabulary,
        "text_length": shape_of(state, f"{text}embeddings.position_embeddings.weight", 2)[0],
        "num_images": images,
        "decoder_depth": count_layers(state, "text_decoder.bert.encoder.layer", "attention.self.query.weight"),
        **({} if embed_dim is None else {"embed_dim": embed_dim}),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint (`state` under our names), with a momentum teacher if it has one."""
    model, (own, beside) = config_of(ALBEFConfig, arguments).build(), split_teacher(state)
    if task == "assignment":
        return TextAssignment(model, model.dim, nn.Linear(model.image_dim, model.embed_dim))
    if task not in ("pretraining", "retrieval"):
        step = _task_step(model, task, own)
        return MomentumDistilled(step) if beside else step
    student = _pretraining(model) if task == "pretraining" else _retrieval(model)
    return (
        MomentumDistillation(student, Queue(*shape_of(state, "queue.image", 2), with_identities=task == "retrieval"))
        if beside
        else student
    )


def _task_step(model: ALBEF, task: str, state: State) -> Entailment | NLVR2Joint | OpenVQA:
    if task == "nlvr2":
        return NLVR2Joint(model, model.dim)
    if task == "vqa":
        return OpenVQA(model, double_first_token=True)
    answers = shape_of(state, "head.2.weight", 2)[0]
    return Entailment(model, nn.Sequential(nn.Linear(model.dim, model.dim), nn.ReLU(), nn.Linear(model.dim, answers)))


def _pretraining(model: ALBEF) -> Pretraining:
    masking = WordMasking(model.vocab_size, whole_words=False)
    return Pretraining(model, model.pretraining_heads(), [MLMLoss(masking), ITCLoss(), HardNegativeITMLoss()])


def _retrieval(model: ALBEF) -> Pretraining:
    heads = model.pretraining_heads()
    del heads["mlm"]
    heads["itc"].scale = Temperature(bounds=None)  # the official code bounds it in pre-training only
    return Pretraining(model, heads, [ITCLoss(), HardNegativeITMLoss()])


ADAPTER = CheckpointAdapter(
    name="albef",
    config_class=ALBEFConfig,
    matches=lambda state: (
        "visual_encoder.cls_token" in state
        and any(f"{text}{TOKEN_TYPES}" in state for text in ("text_encoder.", "text_encoder.bert."))
    ),
    task=task,
    names=names,
    infer=infer,
    build=build,
    positions=(AbsolutePositions("visual_encoder.pos_embed", "model.image.patches.position", resize_bicubic_plain),),
    model_prefix="model",
)
