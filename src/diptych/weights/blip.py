"""BLIP's official checkpoints: what they tell, and the step that each was trained in."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.layers.position import resize_bicubic_plain
from diptych.models.blip import BLIP
from diptych.objectives.contrast import among_themselves
from diptych.objectives.hard import HardMatching
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.lm import NextWords
from diptych.objectives.momentum import Momentum, Queue
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2_at_once import NLVR2AtOnce
from diptych.tasks.open_vqa import OpenVQA
from diptych.weights.blip_names import READER, WRITER, names
from diptych.weights.positions import Absolute
from diptych.weights.read import WeightsError
from diptych.weights.system import Arguments, State, System, Told, count, has, heads_of, shape, student_of, vision_grid
from diptych.weights.vit import encoder_shape

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


def infer(state: State, told: Told) -> dict[str, Any]:
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
        **{f"image_{name}": image[name] for name in ("width", "depth", "heads", "hidden")},
        "patch": image["patch"],
        "grid": image["grid"],
        "width": width,
        "depth": depth,
        "heads": heads_of(width, language.get("num_attention_heads", told.get("num_heads"))),
        "hidden": shape(state, f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "vocabulary": vocabulary,
        "text_length": shape(state, f"{text}embeddings.position_embeddings.weight", 2)[0],
        "begin": ids.get("bos_DEC", vocabulary - 2),
        "ground": ids.get("ENC", vocabulary - 1),
        "form": form,
        **({"averaged": depth - merged} if form == "nlvr2" else {}),
        **({"joint": shape(state, "vision_proj.weight", 2)[0]} if has(state, "vision_proj.") else {}),
    }


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that a checkpoint (`state`, our names) was trained in: beside its momentum model where it holds that."""
    model = BLIP(**arguments)
    if task == "caption":
        return Captioning(model, PROMPT, SMOOTHING)
    if task == "nlvr2":
        return NLVR2AtOnce(model, model.width)
    if task == "vqa":
        return OpenVQA(model, SMOOTHING)
    if task == "matching":
        heads = model.heads()
        del heads.get_submodule("contrast").scale  # pairs are scored by their cosines as they are
        return nn.ModuleDict({"model": model, "heads": heads})
    objectives: list[Objective] = [ImageTextContrast()]
    objectives += (
        [HardMatching(even=1e-4), NextWords(smoothing=SMOOTHING)]
        if task == "pretraining"
        else [HardMatching(compare=among_themselves)]
    )
    student = Pretraining(model, model.heads(), objectives)
    if not student_of(state)[1]:
        return student
    queue = Queue(*shape(state, "queue.image", 2), identified=task == "retrieval")
    return Momentum(student, queue, ("model.decoder", "heads.match", "heads.contrast.scale"))


SYSTEM = System(
    name="blip",
    known=lambda state: (
        "visual_encoder.cls_token" in state
        and any(f"{text}embeddings.word_embeddings.weight" in state for text in (READER, WRITER))
        and not any("token_type_embeddings" in name for name in state)
    ),
    task=task,
    names=names,
    infer=infer,
    build=build,
    positions=(Absolute("visual_encoder.pos_embed", "model.image.patches.position", resize_bicubic_plain),),
    nest="model",
)
