"""The official names of BLIP's weights, and ours, for pre-training and each downstream task."""

from __future__ import annotations

from diptych.weights.bert import ATTENTION, CONTEXT, LAYER, PARTS, WORDS
from diptych.weights.names import FLAT, ROW, TURNED, Names, both, under
from diptych.weights.system import Arguments
from diptych.weights.vit import BLOCK, PATCHES

READER, WRITER = "text_encoder.", "text_decoder.bert."
NO_WEIGHT = "a buffer of 0, 1, 2 …, not a weight"


def _image(official: str, ours: str) -> Names:
    table = {**PATCHES, **BLOCK, **both("norm", "norm")}
    return Names(under(official, ours, table), forms={f"{official}patch_embed.proj.weight": FLAT})


def _text(official: str, ours: str, depth: int, layer: dict[str, str]) -> Names:
    layers = {f"encoder.layer.{i}.{name}": f"blocks.{i}.{our}" for i in range(depth) for name, our in layer.items()}
    table = under("embeddings.", "words.", WORDS) | layers
    return Names(under(official, ours, table), dead={f"{official}embeddings.position_ids": NO_WEIGHT})


def _vocabulary(ours: str, words: str) -> Names:
    """The decoder's word head. `words`: the official embedding that it repeats."""
    head = "text_decoder.cls.predictions"
    return Names(
        both(f"{head}.transform.dense", f"{ours}.dense")
        | both(f"{head}.transform.LayerNorm", f"{ours}.norm")
        | {f"{head}.bias": f"{ours}.bias"},
        twins={
            f"{head}.decoder.weight": f"{words}embeddings.word_embeddings.weight",
            f"{head}.decoder.bias": f"{head}.bias",
        },
    )


def _shared(names: Names, ours: str, depth: int) -> Names:
    """A decoder that repeats the encoder but for its self-attention."""
    own = {f"encoder.layer.{i}.{name}": f"blocks.{i}.{our}" for i in range(depth) for name, our in ATTENTION.items()}
    told = [name.removeprefix(READER) for name in (*names.ours, *names.dead) if name.startswith(READER)]
    ids = f"{WRITER}embeddings.position_ids"
    return Names(
        under(WRITER, ours, own),
        dead={ids: NO_WEIGHT},
        twins={f"{WRITER}{name}": f"{READER}{name}" for name in told if name not in own and f"{WRITER}{name}" != ids},
    )


def _twin(depth: int, averaged: int) -> dict[str, str]:
    """Attention to two images, by layer: the names within ``encoder.layer.``, and ours within ``blocks.``."""
    table: dict[str, str] = {}
    for i in range(depth):
        for k, side in enumerate(("first", "second")):
            for part in PARTS:
                table |= both(f"{i}.crossattention.self{k}.{part}", f"{i}.cross.{side}.{part}")
            table |= both(f"{i}.crossattention.output.dense{k}", f"{i}.cross.{side}.out")
        table |= both(f"{i}.crossattention.output.LayerNorm", f"{i}.cross_norm")
        if i >= averaged:
            table |= both(f"{i}.crossattention.output.merge_layer", f"{i}.cross.merge")
    return table


def _contrast(mark: str, ours: str) -> Names:
    return Names(both(f"vision_proj{mark}", f"{ours}.image") | both(f"text_proj{mark}", f"{ours}.text"))


def _encoder(arguments: Arguments, model: str, mark: str = "") -> Names:
    """The image and the text encoder; `mark`: what the momentum model's names carry."""
    text = _text(f"text_encoder{mark}.", f"{model}encoder.", arguments["depth"], LAYER | CONTEXT)
    return _image(f"visual_encoder{mark}.", f"{model}image.") | text


def _with_momentum(arguments: Arguments, task: str) -> Names:
    found = _encoder(arguments, "student.model.") | _encoder(arguments, "teacher.model.", "_m")
    found |= _contrast("", "student.heads.contrast") | _contrast("_m", "teacher.heads.contrast")
    place = {"pretraining": "queue_ptr", "retrieval": "ptr_queue"}[task]
    found |= Names(
        both("itm_head", "student.heads.match.linear")
        | {"temp": "student.heads.contrast.scale.value", place: "queue.place"}
        | {"image_queue": "queue.image", "text_queue": "queue.text"},
        forms={"image_queue": TURNED, "text_queue": TURNED},
    )
    if task == "retrieval":
        return found | Names({"idx_queue": "queue.identity"}, forms={"idx_queue": ROW})
    decoder = "student.model.decoder."
    return found | _shared(found, decoder, arguments["depth"]) | _vocabulary(f"{decoder}vocabulary", READER)


def names(arguments: Arguments, task: str) -> Names:
    """The table of names for a model of these arguments, trained for this task."""
    if task in ("pretraining", "retrieval"):
        return _with_momentum(arguments, task)
    if task == "matching":
        found = _encoder(arguments, "model.") | _contrast("", "heads.contrast")
        return found | Names(both("itm_head", "heads.match.linear"))
    if task == "nlvr2":
        depth = arguments["depth"]
        text = _text(READER, "model.encoder.", depth, LAYER)
        twin = under(f"{READER}encoder.layer.", "model.encoder.blocks.", _twin(depth, arguments["averaged"]))
        head = both("cls_head.0", "head.0") | both("cls_head.2", "head.2")
        return _image("visual_encoder.", "model.image.") | text | Names(twin | head)
    decoder = _text(WRITER, "model.decoder.", arguments["depth"], LAYER | CONTEXT)
    decoder |= _vocabulary("model.decoder.vocabulary", WRITER)
    image = _image("visual_encoder.", "model.image.")
    return {"caption": image | decoder, "vqa": _encoder(arguments, "model.") | decoder}[task]
