"""The official names of BLIP's weights, and ours, for pre-training and each downstream task.

BLIP's official checkpoints: what they tell, and the step that each was trained in.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.checkpoints.adapter import (
    Arguments,
    CheckpointAdapter,
    OfficialConfig,
    State,
    count,
    has,
    heads_of,
    shape,
    split_teacher,
    vision_grid,
)
from diptych.checkpoints.bert import ATTENTION, CONTEXT, LAYER, PARTS, WORDS
from diptych.checkpoints.mapping import FLAT, ROW, TURNED, KeyMapping, prefixed, weight_and_bias
from diptych.checkpoints.positions import Absolute
from diptych.checkpoints.read import WeightsError
from diptych.models.blip.model import BLIP
from diptych.models.vit.checkpoint import BLOCK, PATCHES, encoder_shape
from diptych.modules.position import resize_bicubic_plain
from diptych.objectives.contrast import within_modality_logits
from diptych.objectives.itc import ITC
from diptych.objectives.itm import HardNegativeITM
from diptych.objectives.lm import LM
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.vqa import OpenVQA

READER, WRITER = "text_encoder.", "text_decoder.bert."
NO_WEIGHT = "a buffer of 0, 1, 2 …, not a weight"


def _image(official: str, ours: str) -> KeyMapping:
    table = {**PATCHES, **BLOCK, **weight_and_bias("norm", "norm")}
    return KeyMapping(prefixed(official, ours, table), forms={f"{official}patch_embed.proj.weight": FLAT})


def _text(official: str, ours: str, depth: int, layer: dict[str, str]) -> KeyMapping:
    layers = {f"encoder.layer.{i}.{name}": f"blocks.{i}.{our}" for i in range(depth) for name, our in layer.items()}
    table = prefixed("embeddings.", "words.", WORDS) | layers
    return KeyMapping(prefixed(official, ours, table), ignored={f"{official}embeddings.position_ids": NO_WEIGHT})


def _vocabulary(ours: str, words: str) -> KeyMapping:
    """The decoder's word head. `words`: the official embedding that it repeats."""
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
    """A decoder that repeats the encoder but for its self-attention."""
    own = {f"encoder.layer.{i}.{name}": f"blocks.{i}.{our}" for i in range(depth) for name, our in ATTENTION.items()}
    told = [name.removeprefix(READER) for name in (*names.ours, *names.ignored) if name.startswith(READER)]
    ids = f"{WRITER}embeddings.position_ids"
    return KeyMapping(
        prefixed(WRITER, ours, own),
        ignored={ids: NO_WEIGHT},
        tied={f"{WRITER}{name}": f"{READER}{name}" for name in told if name not in own and f"{WRITER}{name}" != ids},
    )


def _twin(depth: int, averaged: int) -> dict[str, str]:
    """Attention to two images, by layer: the names within ``encoder.layer.``, and ours within ``blocks.``."""
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


def _contrast(mark: str, ours: str) -> KeyMapping:
    return KeyMapping(
        weight_and_bias(f"vision_proj{mark}", f"{ours}.image") | weight_and_bias(f"text_proj{mark}", f"{ours}.text")
    )


def _encoder(arguments: Arguments, model: str, mark: str = "") -> KeyMapping:
    """The image and the text encoder; `mark`: what the momentum model's names carry."""
    text = _text(f"text_encoder{mark}.", f"{model}encoder.", arguments["depth"], LAYER | CONTEXT)
    return _image(f"visual_encoder{mark}.", f"{model}image.") | text


def _with_momentum(arguments: Arguments, task: str) -> KeyMapping:
    found = _encoder(arguments, "student.model.") | _encoder(arguments, "teacher.model.", "_m")
    found |= _contrast("", "student.heads.contrast") | _contrast("_m", "teacher.heads.contrast")
    place = {"pretraining": "queue_ptr", "retrieval": "ptr_queue"}[task]
    found |= KeyMapping(
        weight_and_bias("itm_head", "student.heads.match.linear")
        | {"temp": "student.heads.contrast.scale.value", place: "queue.place"}
        | {"image_queue": "queue.image", "text_queue": "queue.text"},
        forms={"image_queue": TURNED, "text_queue": TURNED},
    )
    if task == "retrieval":
        return found | KeyMapping({"idx_queue": "queue.identity"}, forms={"idx_queue": ROW})
    decoder = "student.model.decoder."
    return found | _shared(found, decoder, arguments["depth"]) | _vocabulary(f"{decoder}vocabulary", READER)


def names(arguments: Arguments, task: str) -> KeyMapping:
    """The table of names for a model of these arguments, trained for this task."""
    if task in ("pretraining", "retrieval"):
        return _with_momentum(arguments, task)
    if task == "matching":
        found = _encoder(arguments, "model.") | _contrast("", "heads.contrast")
        return found | KeyMapping(weight_and_bias("itm_head", "heads.match.linear"))
    if task == "nlvr2":
        depth = arguments["depth"]
        text = _text(READER, "model.encoder.", depth, LAYER)
        twin = prefixed(f"{READER}encoder.layer.", "model.encoder.blocks.", _twin(depth, arguments["averaged"]))
        head = weight_and_bias("cls_head.0", "head.0") | weight_and_bias("cls_head.2", "head.2")
        return _image("visual_encoder.", "model.image.") | text | KeyMapping(twin | head)
    decoder = _text(WRITER, "model.decoder.", arguments["depth"], LAYER | CONTEXT)
    decoder |= _vocabulary("model.decoder.vocabulary", WRITER)
    image = _image("visual_encoder.", "model.image.")
    return {"caption": image | decoder, "vqa": _encoder(arguments, "model.") | decoder}[task]


SMOOTHING, PROMPT = 0.1, 4  # of the official losses; pieces that every caption begins with: [DEC] a picture of


def task(state: State) -> str:
    """What an officially named checkpoint was trained for. Raises WeightsError."""
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


def infer(state: State, told: OfficialConfig) -> dict[str, Any]:
    """The arguments of models.blip.BLIP that an officially named checkpoint was made with. Raises WeightsError."""
    form = "retrieval" if (job := task(state)) == "matching" else job
    text = WRITER if form == "caption" else READER
    vocabulary, width = shape(state, f"{text}embeddings.word_embeddings.weight", 2)
    vision, language, ids = (told.get(part, {}) for part in ("vision", "text", "special_ids"))
    image = encoder_shape(
        state, "visual_encoder.", vision.get("heads", told.get("num_heads")), vision_grid(vision, told.get("grid"))
    )
    depth = count(state, f"{text}encoder.layer", "attention.self.query.weight")
    merged = count(state, f"{text}encoder.layer", "crossattention.output.merge_layer.weight")
    return {
        **{f"image_{name}": image[name] for name in ("dim", "depth", "num_heads", "mlp_dim")},
        "patch_size": image["patch_size"],
        "grid": image["grid"],
        "dim": width,
        "depth": depth,
        "num_heads": heads_of(width, language.get("num_attention_heads", told.get("num_heads"))),
        "mlp_dim": shape(state, f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "vocab_size": vocabulary,
        "text_length": shape(state, f"{text}embeddings.position_embeddings.weight", 2)[0],
        "bos_token_id": ids.get("bos_DEC", vocabulary - 2),
        "enc_token_id": ids.get("ENC", vocabulary - 1),
        "variant": form,
        **({"averaged": depth - merged} if form == "nlvr2" else {}),
        **({"embed_dim": shape(state, "vision_proj.weight", 2)[0]} if has(state, "vision_proj.") else {}),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that a checkpoint (`state`, our names) was trained in: beside its momentum model where it holds that."""
    model = BLIP(**arguments)
    if task == "caption":
        return Captioning(model, PROMPT, SMOOTHING)
    if task == "nlvr2":
        return NLVR2Joint(model, model.dim)
    if task == "vqa":
        return OpenVQA(model, SMOOTHING)
    if task == "matching":
        heads = model.pretraining_heads()
        del heads.get_submodule("contrast").scale  # pairs are scored by their cosines as they are
        return nn.ModuleDict({"model": model, "heads": heads})
    objectives: list[Objective] = [ITC()]
    objectives += (
        [HardNegativeITM(uniform_mix=1e-4), LM(label_smoothing=SMOOTHING)]
        if task == "pretraining"
        else [HardNegativeITM(compare=within_modality_logits)]
    )
    student = Pretraining(model, model.pretraining_heads(), objectives)
    if not split_teacher(state)[1]:
        return student
    queue = Queue(*shape(state, "queue.image", 2), identified=task == "retrieval")
    return MomentumDistillation(student, queue, ("model.decoder", "heads.match", "heads.contrast.scale"))


SYSTEM = CheckpointAdapter(
    name="blip",
    matches=lambda state: (
        "visual_encoder.cls_token" in state
        and any(f"{text}embeddings.word_embeddings.weight" in state for text in (READER, WRITER))
        and not any("token_type_embeddings" in name for name in state)
    ),
    task=task,
    names=names,
    infer=infer,
    build=build,
    positions=(Absolute("visual_encoder.pos_embed", "model.image.patches.position", resize_bicubic_plain),),
    model_prefix="model",
)
