"""The official names of ALBEF's weights, and ours, for pre-training and each downstream task.

ALBEF's official checkpoints: what they tell, and the step that each was trained in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    OfficialConfig,
    State,
    count,
    first_marker,
    has,
    heads_of,
    shape,
    split_teacher,
    vision_grid,
)
from diptych.checkpoints.bert import CONTEXT, LAYER, WORDS
from diptych.checkpoints.mapping import FLAT, ROW, TURNED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.positions import Absolute
from diptych.checkpoints.read import WeightsError
from diptych.models.albef.model import ALBEF
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.modules.heads import Temperature
from diptych.modules.position import resize_bicubic_plain
from diptych.objectives.itc import ITC
from diptych.objectives.itm import HardNegativeITM
from diptych.objectives.mlm import MLM
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.sampling import WordMasking
from diptych.tasks.entailment import Entailment
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.nlvr2 import NLVR2Joint, TextAssignment
from diptych.tasks.vqa import OpenVQA

NO_WEIGHT = "a buffer of 0, 1, 2 …, not a weight"
UNREAD = "kept from pre-training, but nothing reads it in text assignment"
SHARED = [f"crossattention.self.{part}.{kind}" for part in ("key", "value") for kind in ("weight", "bias")]


def bert_of(task: str) -> str:
    """What the text encoder's names stand under."""
    return "text_encoder.bert." if task == "pretraining" else "text_encoder."


def _words(official: str, ours: str) -> KeyMapping:
    table = WORDS | {"token_type_embeddings.weight": "segment.weight"}
    return KeyMapping(prefixed(official, ours, table), ignored={f"{official}position_ids": NO_WEIGHT})


def _vocabulary(official: str, ours: str, words: str) -> KeyMapping:
    """A masked-word or answer head, tied to the `words` (an official name) that it guesses."""
    return KeyMapping(
        weight_and_bias(f"{official}transform.dense", f"{ours}dense")
        | weight_and_bias(f"{official}transform.LayerNorm", f"{ours}norm")
        | {f"{official}bias": f"{ours}bias"},
        tied={f"{official}decoder.weight": words, f"{official}decoder.bias": f"{official}bias"},
    )


def _towers(arguments: Arguments, task: str, mark: str, ours: str) -> KeyMapping:
    """The image encoder, and text encoder and fusion, which are one BERT there; `mark`: the momentum model's "_m"."""
    image = f"visual_encoder{mark}."
    text = bert_of(task).replace("text_encoder", f"text_encoder{mark}")
    depth, images = arguments["text_depth"], arguments["num_images"]
    table: dict[str, str] = {}
    twins: dict[str, str] = {}
    for i in range(depth):
        table |= prefixed(f"{text}encoder.layer.{i}.", f"{ours}text.{i}.", LAYER)
    for i in range(arguments["fusion_depth"]):
        first = depth + i * images
        for j in range(images):
            layer = f"{text}encoder.layer.{first + j}."
            table |= prefixed(layer, f"{ours}fusion.{i}.{j}.", LAYER | CONTEXT)
            twins |= {f"{layer}{name}": f"{text}encoder.layer.{first}.{name}" for name in SHARED if j}
    table = {name: our for name, our in table.items() if name not in twins}
    pixels = prefixed(image, f"{ours}image.", {**PATCHES, **BLOCK, **weight_and_bias("norm", "norm")})
    return (
        KeyMapping(pixels | table, tied=twins, forms={f"{image}patch_embed.proj.weight": FLAT})
        | _words(f"{text}embeddings.", f"{ours}words.")
    )  # fmt: skip


def _decoder(mark: str, ours: str, depth: int) -> KeyMapping:
    official = f"text_decoder{mark}."
    table: dict[str, str] = {}
    for i in range(depth):
        table |= prefixed(f"{official}bert.encoder.layer.{i}.", f"{ours}decoder.{i}.", LAYER | CONTEXT)
    words = f"{official}bert.embeddings."
    head = _vocabulary(f"{official}cls.predictions.", f"{ours}answer_head.", f"{words}word_embeddings.weight")
    return KeyMapping(table) | _words(words, f"{ours}answer_words.") | head


def _speaker(arguments: Arguments, task: str, mark: str, ours: str) -> KeyMapping:
    """Student (`mark` "") or teacher ("_m") of any task, under `ours`; the parts that the teacher lacks stand elsewhere."""
    found = _towers(arguments, task, mark, f"{ours}model.")
    if task in ("pretraining", "retrieval"):
        found |= KeyMapping(
            weight_and_bias(f"vision_proj{mark}", f"{ours}heads.contrast.image")
            | weight_and_bias(f"text_proj{mark}", f"{ours}heads.contrast.text")
        )
    if task == "pretraining":
        words = f"text_encoder{mark}.bert.embeddings.word_embeddings.weight"
        found |= _vocabulary(f"text_encoder{mark}.cls.predictions.", f"{ours}heads.words.", words)
    if task == "vqa":
        found |= _decoder(mark, f"{ours}model.", arguments["decoder_depth"])
    if task in ("nlvr2", "entailment"):
        head = weight_and_bias(f"cls_head{mark}.0", f"{ours}head.0") | weight_and_bias(
            f"cls_head{mark}.2", f"{ours}head.2"
        )
        found |= KeyMapping(head)
    return found


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names for a model of these arguments, trained for this task."""
    if task == "assignment":
        kept = {name: UNREAD for name in ("text_proj.weight", "text_proj.bias", "temp")}
        heads = KeyMapping(weight_and_bias("vision_proj", "project") | weight_and_bias("ta_head", "head"), ignored=kept)
        return _speaker(arguments, task, "", "") | heads
    found = _speaker(arguments, task, "", "student.") | _speaker(arguments, task, "_m", "teacher.")
    if task not in ("pretraining", "retrieval"):
        return found
    rows = {"idx_queue": "queue.identity"} if task == "retrieval" else {}
    return found | KeyMapping(
        weight_and_bias("itm_head", "student.heads.match.linear")
        | {"temp": "student.heads.contrast.scale.value", "queue_ptr": "queue.place"}
        | {"image_queue": "queue.image", "text_queue": "queue.text"}
        | rows,
        forms={"image_queue": TURNED, "text_queue": TURNED} | dict.fromkeys(rows, ROW),
    )


LAYERS, CONTEXT_KEY = "text_encoder.encoder.layer", "crossattention.self.key.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"  # which BLIP's BERT does not have


def task(state: State) -> str:
    """What an officially named checkpoint was trained for. Raises WeightsError."""
    if has(state, "cls_head.2."):
        return "nlvr2" if _paired(state) else "entailment"
    marks = {
        "ta_head.": "assignment",
        f"text_decoder.bert.{TOKEN_TYPES}": "vqa",
        f"text_encoder.bert.{TOKEN_TYPES}": "pretraining",
        "itm_head.": "retrieval",
    }
    if (found := first_marker(state, marks)) == "encoder":
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


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
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
        **{f"image_{name}": image[name] for name in ("dim", "depth", "num_heads", "mlp_dim")},
        "patch_size": image["patch_size"],
        "grid": image["grid"],
        "dim": width,
        "text_depth": layers - fusion,
        "fusion_depth": fusion // images,
        "num_heads": heads_of(width, language.get("num_attention_heads", told.get("num_heads"))),
        "mlp_dim": shape(state, f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "vocab_size": vocabulary,
        "text_length": shape(state, f"{text}embeddings.position_embeddings.weight", 2)[0],
        "num_images": images,
        "decoder_depth": count(state, "text_decoder.bert.encoder.layer", "attention.self.query.weight"),
        **({"embed_dim": shape(state, "vision_proj.weight", 2)[0]} if has(state, "vision_proj.") else {}),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that a checkpoint (`state`, our names) was trained in: beside its momentum model where it holds that."""
    model, (own, beside) = ALBEF(**arguments), split_teacher(state)
    if task == "assignment":
        return TextAssignment(model, model.dim, nn.Linear(model.image_dim, model.embed_dim))
    if task not in ("pretraining", "retrieval"):
        judge = _judging(model, task, own)
        return MomentumDistilled(judge) if beside else judge
    student = _pretraining(model) if task == "pretraining" else _retrieval(model)
    return (
        MomentumDistillation(student, Queue(*shape(state, "queue.image", 2), identified=task == "retrieval"))
        if beside
        else student
    )


def _judging(model: ALBEF, task: str, state: State) -> Entailment | NLVR2Joint | OpenVQA:
    if task == "nlvr2":
        return NLVR2Joint(model, model.dim)
    if task == "vqa":
        return OpenVQA(model, twice=True)
    answers = shape(state, "head.2.weight", 2)[0]
    return Entailment(model, nn.Sequential(nn.Linear(model.dim, model.dim), nn.ReLU(), nn.Linear(model.dim, answers)))


def _pretraining(model: ALBEF) -> Pretraining:
    masking = WordMasking(model.vocab_size, whole_words=False)
    return Pretraining(model, model.pretraining_heads(), [MLM(masking), ITC(), HardNegativeITM()])


def _retrieval(model: ALBEF) -> Pretraining:
    heads = model.pretraining_heads()
    del heads["words"]
    heads["contrast"].scale = Temperature(bounds=None)  # the official code holds it while pre-training only
    return Pretraining(model, heads, [ITC(), HardNegativeITM()])


SYSTEM = CheckpointAdapter(
    name="albef",
    matches=lambda state: (
        "visual_encoder.cls_token" in state
        and any(f"{text}{TOKEN_TYPES}" in state for text in ("text_encoder.", "text_encoder.bert."))
    ),
    task=task,
    names=names,
    infer=infer,
    build=build,
    positions=(Absolute("visual_encoder.pos_embed", "model.image.patches.position", resize_bicubic_plain),),
    model_prefix="model",
)
