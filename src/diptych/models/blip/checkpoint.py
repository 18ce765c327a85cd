"""BLIP's official checkpoints: weight names, sizes inferred from shapes, and the training step of each task."""

from __future__ import annotations

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
    losses_of_heads,
    shape_of,
    split_teacher,
)
from diptych.checkpoints.bert import ATTENTION, CROSS_ATTENTION, LAYER, PARTS, TEXT_EMBEDDING
from diptych.checkpoints.mapping import CONV_AS_LINEAR, SQUEEZED, TRANSPOSED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.official_config import OfficialConfig, stated
from diptych.checkpoints.positions import AbsolutePositions
from diptych.checkpoints.read import WeightsError
from diptych.models.blip.config import LABEL_SMOOTHING, BLIPConfig
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.modules.position import resize_bicubic_plain
from diptych.objectives.contrastive_logits import within_modality_logits
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.lm import LMLoss
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.open_vqa import OpenVQA

ENCODER, DECODER = "text_encoder.", "text_decoder.bert."
NO_WEIGHT = "a buffer of 0, 1, 2 …, not a weight"


def _image(official: str, ours: str) -> KeyMapping:
    table = {**PATCHES, **BLOCK, **weight_and_bias("norm", "norm")}
    return KeyMapping(
        prefixed(official, ours, table), transforms={f"{official}patch_embed.proj.weight": CONV_AS_LINEAR}
    )


def _text(official: str, ours: str, depth: int, layer: dict[str, str]) -> KeyMapping:
    layers = {f"encoder.layer.{i}.{name}": f"blocks.{i}.{our}" for i in range(depth) for name, our in layer.items()}
    table = prefixed("embeddings.", "words.", TEXT_EMBEDDING) | layers
    return KeyMapping(prefixed(official, ours, table), ignored={f"{official}embeddings.position_ids": NO_WEIGHT})


def _vocabulary(ours: str, words: str) -> KeyMapping:
    """The decoder's LM head, tied to the word embedding under the official prefix `words`."""
    head = "text_decoder.cls.predictions"
    return KeyMapping(
        weight_and_bias(f"{head}.transform.dense", f"{ours}.dense")
        | weight_and_bias(f"{head}.transform.LayerNorm", f"{ours}.norm")
        | {f"{head}.bias": f"{ours}.bias"},
        tied={
            f"{head}.decoder.weight": f"{words}embeddings.word_embeddings.weight",
            f"{head}.decoder.bias": f"{head}.bias",
        },
    )


def _shared(names: KeyMapping, ours: str, depth: int) -> KeyMapping:
    """A decoder that shares all weights with the encoder except for its self-attention."""
    own = {f"encoder.layer.{i}.{name}": f"blocks.{i}.{our}" for i in range(depth) for name, our in ATTENTION.items()}
    shared = [name.removeprefix(ENCODER) for name in (*names.ours, *names.ignored) if name.startswith(ENCODER)]
    ids = f"{DECODER}embeddings.position_ids"
    return KeyMapping(
        prefixed(DECODER, ours, own),
        ignored={ids: NO_WEIGHT},
        tied={
            f"{DECODER}{name}": f"{ENCODER}{name}" for name in shared if name not in own and f"{DECODER}{name}" != ids
        },
    )


def _two_image_attention(depth: int, averaged: int) -> dict[str, str]:
    """Cross-attention to two images: names within ``encoder.layer.``, and ours within ``blocks.``.

    The first `averaged` layers average the outputs for the two images, the others merge them by a linear layer.
    """
    table: dict[str, str] = {}
    for i in range(depth):
        for k, side in enumerate(("first", "second")):
            for part in PARTS:
                table |= weight_and_bias(f"{i}.crossattention.self{k}.{part}", f"{i}.cross.{side}.{part}")
            table |= weight_and_bias(f"{i}.crossattention.output.dense{k}", f"{i}.cross.{side}.out")
        table |= weight_and_bias(f"{i}.crossattention.output.LayerNorm", f"{i}.cross_norm")
        if i >= averaged:
            table |= weight_and_bias(f"{i}.crossattention.output.merge_layer", f"{i}.cross.merge")
    return table


def _contrast(suffix: str, ours: str) -> KeyMapping:
    """The projections of the ITC head."""
    return KeyMapping(
        weight_and_bias(f"vision_proj{suffix}", f"{ours}.image") | weight_and_bias(f"text_proj{suffix}", f"{ours}.text")
    )


def _encoders(arguments: Arguments, model: str, suffix: str = "") -> KeyMapping:
    """The image and the text encoder; `suffix`: "_m" for the momentum model."""
    text = _text(f"text_encoder{suffix}.", f"{model}encoder.", arguments["depth"], LAYER | CROSS_ATTENTION)
    return _image(f"visual_encoder{suffix}.", f"{model}image.") | text


def _with_momentum(arguments: Arguments, task: str) -> KeyMapping:
    """The student, its momentum teacher and the queue."""
    table = _encoders(arguments, "student.model.") | _encoders(arguments, "teacher.model.", "_m")
    table |= _contrast("", "student.heads.itc") | _contrast("_m", "teacher.heads.itc")
    pointer = {"pretraining": "queue_ptr", "retrieval": "ptr_queue"}[task]
    table |= KeyMapping(
        weight_and_bias("itm_head", "student.heads.itm.linear")
        | {"temp": "student.heads.itc.scale.value", pointer: "queue.place"}
        | {"image_queue": "queue.image", "text_queue": "queue.text"},
        transforms={"image_queue": TRANSPOSED, "text_queue": TRANSPOSED},
    )
    if task == "retrieval":
        return table | KeyMapping({"idx_queue": "queue.identity"}, transforms={"idx_queue": SQUEEZED})
    decoder = "student.model.decoder."
    return table | _shared(table, decoder, arguments["depth"]) | _vocabulary(f"{decoder}lm_head", ENCODER)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of weight names of a model with these arguments, trained for this task."""
    if task in ("pretraining", "retrieval"):
        return _with_momentum(arguments, task)
    if task == "matching":
        table = _encoders(arguments, "model.") | _contrast("", "heads.itc")
        return table | KeyMapping(weight_and_bias("itm_head", "heads.itm.linear"))
    if task == "nlvr2":
        depth = arguments["depth"]
        text = _text(ENCODER, "model.encoder.", depth, LAYER)
        cross = prefixed(
            f"{ENCODER}encoder.layer.",
            "model.encoder.blocks.",
            _two_image_attention(depth, arguments["average_image_attention"]),
        )
        head = weight_and_bias("cls_head.0", "head.0") | weight_and_bias("cls_head.2", "head.2")
        return _image("visual_encoder.", "model.image.") | text | KeyMapping(cross | head)
    decoder = _text(DECODER, "model.decoder.", arguments["depth"], LAYER | CROSS_ATTENTION)
    decoder |= _vocabulary("model.decoder.lm_head", DECODER)
    image = _image("visual_encoder.", "model.image.")
    return {"caption": image | decoder, "vqa": _encoders(arguments, "model.") | decoder}[task]


PROMPT = 4  # tokens that every caption begins with: [DEC] a picture of


def task(state: State) -> str:
    """The task that a checkpoint under official names was trained for. Raises WeightsError."""
    parts = {name.partition(".")[0] for name in state}
    if "cls_head" in parts:
        return "nlvr2"
    if "text_decoder" in parts:
        return ("pretraining" if "temp" in parts else "vqa") if "text_encoder" in parts else "caption"
    if "itm_head" in parts:
        return (
            "retrieval" if "temp" in parts else "matching"
        )  # BLIP_ITM, which the official code has to score pairs alone
    raise WeightsError("a BLIP of no known task: it has neither decoder nor head nor queue")


def infer(state: State, config: OfficialConfig) -> dict[str, Any]:
    """The constructor arguments of BLIP for a checkpoint under official names. Raises WeightsError."""
    variant = "retrieval" if (trained_for := task(state)) == "matching" else trained_for
    text = DECODER if variant == "caption" else ENCODER
    vocabulary, width = shape_of(state, f"{text}embeddings.word_embeddings.weight", 2)
    begin, encode = (
        stated(config, argument, f"special_ids.{key}")
        for argument, key in (("bos_token_id", "bos_DEC"), ("enc_token_id", "ENC"))
    )
    image = encoder_shape(state, "visual_encoder.", config, "image_num_heads", "vision.heads", "num_heads")
    depth = count_layers(state, f"{text}encoder.layer", "attention.self.query.weight")
    merged = count_layers(state, f"{text}encoder.layer", "crossattention.output.merge_layer.weight")
    embed_dim = stated(config, "embed_dim", "embed_dim")
    if has_prefix(state, "vision_proj."):
        embed_dim = shape_of(state, "vision_proj.weight", 2)[0]
    return {
        **{f"image_{name}": image[name] for name in ("dim", "depth", "num_heads", "mlp_dim")},
        "patch_size": image["patch_size"],
        "grid": image["grid"],
        "dim": width,
        "depth": depth,
        "num_heads": infer_num_heads(width, config, "num_heads", "text.num_attention_heads", "num_heads"),
        "mlp_dim": shape_of(state, f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "vocab_size": vocabulary,
        "text_length": shape_of(state, f"{text}embeddings.position_embeddings.weight", 2)[0],
        "bos_token_id": vocabulary - 2 if begin is None else begin,
        "enc_token_id": vocabulary - 1 if encode is None else encode,
        "variant": variant,
        **({"average_image_attention": depth - merged} if variant == "nlvr2" else {}),
        **({} if embed_dim is None else {"embed_dim": embed_dim}),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The training step of a checkpoint (`state` under our names), with a momentum teacher if it has one."""
    model = config_of(BLIPConfig, arguments).build()
    if task == "caption":
        return Captioning(model, PROMPT, LABEL_SMOOTHING)
    if task == "nlvr2":
        return NLVR2Joint(model, model.dim)
    if task == "vqa":
        return OpenVQA(model, LABEL_SMOOTHING)
    if task == "matching":
        return without_temperature(Pretraining(model, model.pretraining_heads(), [ITCLoss(), HardNegativeITMLoss()]))
    objectives: list[Objective] = [ITCLoss()]
    objectives += (
        [HardNegativeITMLoss(uniform_mix=1e-4), LMLoss(label_smoothing=LABEL_SMOOTHING)]
        if task == "pretraining"
        else [HardNegativeITMLoss(compare=within_modality_logits)]
    )
    student = Pretraining(model, model.pretraining_heads(), objectives)
    if not split_teacher(state)[1]:
        return student
    queue = Queue(*shape_of(state, "queue.image", 2), with_identities=task == "retrieval")
    return MomentumDistillation(student, queue, ("model.decoder", "heads.itm", "heads.itc.scale"))


def losses(task: str, heads: tuple[str, ...]) -> tuple[str, ...]:
    """The objectives that a checkpoint was trained with; the decoder has its LM head itself."""
    return (*losses_of_heads(heads), *(("lm",) if task in ("pretraining", "caption") else ()))


def without_temperature(step: nn.Module) -> nn.Module:
    """The step without the temperature of its ITC head: the task "matching" scores pairs by their plain cosines."""
    del step.get_submodule("heads.itc").scale
    return step


ADAPTER = CheckpointAdapter(
    name="blip",
    config_class=BLIPConfig,
    matches=lambda state: (
        "visual_encoder.cls_token" in state
        and any(f"{text}embeddings.word_embeddings.weight" in state for text in (ENCODER, DECODER))
        and not any("token_type_embeddings" in name for name in state)
    ),
    task=task,
    names=names,
    losses=losses,
    infer=infer,
    build=build,
    positions=(AbsolutePositions("visual_encoder.pos_embed", "model.image.patches.position", resize_bicubic_plain),),
    model_prefix="model",
)
