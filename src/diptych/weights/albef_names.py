"""The official names of ALBEF's weights, and ours, for pre-training and each downstream task."""

from __future__ import annotations

from diptych.weights.bert import CONTEXT, LAYER, WORDS
from diptych.weights.names import FLAT, ROW, TURNED, Names, both, under
from diptych.weights.system import Arguments
from diptych.weights.vit import BLOCK, PATCHES

NO_WEIGHT = "a buffer of 0, 1, 2 …, not a weight"
UNREAD = "kept from pre-training, but nothing reads it in text assignment"
SHARED = [f"crossattention.self.{part}.{kind}" for part in ("key", "value") for kind in ("weight", "bias")]


def bert_of(task: str) -> str:
    """What the text encoder's names stand under."""
    return "text_encoder.bert." if task == "pretraining" else "text_encoder."


def _words(official: str, ours: str) -> Names:
    table = WORDS | {"token_type_embeddings.weight": "segment.weight"}
    return Names(under(official, ours, table), dead={f"{official}position_ids": NO_WEIGHT})


def _vocabulary(official: str, ours: str, words: str) -> Names:
    """A masked-word or answer head, tied to the `words` (an official name) that it guesses."""
    return Names(
        both(f"{official}transform.dense", f"{ours}dense")
        | both(f"{official}transform.LayerNorm", f"{ours}norm")
        | {f"{official}bias": f"{ours}bias"},
        twins={f"{official}decoder.weight": words, f"{official}decoder.bias": f"{official}bias"},
    )


def _towers(arguments: Arguments, task: str, mark: str, ours: str) -> Names:
    """The image encoder, and text encoder and fusion, which are one BERT there; `mark`: the momentum model's "_m"."""
    image = f"visual_encoder{mark}."
    text = bert_of(task).replace("text_encoder", f"text_encoder{mark}")
    depth, images = arguments["text_depth"], arguments["images"]
    table: dict[str, str] = {}
    twins: dict[str, str] = {}
    for i in range(depth):
        table |= under(f"{text}encoder.layer.{i}.", f"{ours}text.{i}.", LAYER)
    for i in range(arguments["fusion_depth"]):
        first = depth + i * images
        for j in range(images):
            layer = f"{text}encoder.layer.{first + j}."
            table |= under(layer, f"{ours}fusion.{i}.{j}.", LAYER | CONTEXT)
            twins |= {f"{layer}{name}": f"{text}encoder.layer.{first}.{name}" for name in SHARED if j}
    table = {name: our for name, our in table.items() if name not in twins}
    pixels = under(image, f"{ours}image.", {**PATCHES, **BLOCK, **both("norm", "norm")})
    return (
        Names(pixels | table, twins=twins, forms={f"{image}patch_embed.proj.weight": FLAT})
        | _words(f"{text}embeddings.", f"{ours}words.")
    )  # fmt: skip


def _decoder(mark: str, ours: str, depth: int) -> Names:
    official = f"text_decoder{mark}."
    table: dict[str, str] = {}
    for i in range(depth):
        table |= under(f"{official}bert.encoder.layer.{i}.", f"{ours}decoder.{i}.", LAYER | CONTEXT)
    words = f"{official}bert.embeddings."
    head = _vocabulary(f"{official}cls.predictions.", f"{ours}answer_head.", f"{words}word_embeddings.weight")
    return Names(table) | _words(words, f"{ours}answer_words.") | head


def _speaker(arguments: Arguments, task: str, mark: str, ours: str) -> Names:
    """Student (`mark` "") or teacher ("_m") of any task, under `ours`; the parts that the teacher lacks stand elsewhere."""
    found = _towers(arguments, task, mark, f"{ours}model.")
    if task in ("pretraining", "retrieval"):
        found |= Names(
            both(f"vision_proj{mark}", f"{ours}heads.contrast.image")
            | both(f"text_proj{mark}", f"{ours}heads.contrast.text")
        )
    if task == "pretraining":
        words = f"text_encoder{mark}.bert.embeddings.word_embeddings.weight"
        found |= _vocabulary(f"text_encoder{mark}.cls.predictions.", f"{ours}heads.words.", words)
    if task == "vqa":
        found |= _decoder(mark, f"{ours}model.", arguments["decoder_depth"])
    if task in ("nlvr2", "entailment"):
        head = both(f"cls_head{mark}.0", f"{ours}head.0") | both(f"cls_head{mark}.2", f"{ours}head.2")
        found |= Names(head)
    return found


def names(arguments: Arguments, task: str) -> Names:
    """The table of names for a model of these arguments, trained for this task."""
    if task == "assignment":
        kept = {name: UNREAD for name in ("text_proj.weight", "text_proj.bias", "temp")}
        heads = Names(both("vision_proj", "project") | both("ta_head", "head"), dead=kept)
        return _speaker(arguments, task, "", "") | heads
    found = _speaker(arguments, task, "", "student.") | _speaker(arguments, task, "_m", "teacher.")
    if task not in ("pretraining", "retrieval"):
        return found
    rows = {"idx_queue": "queue.identity"} if task == "retrieval" else {}
    return found | Names(
        both("itm_head", "student.heads.match.linear")
        | {"temp": "student.heads.contrast.scale.value", "queue_ptr": "queue.place"}
        | {"image_queue": "queue.image", "text_queue": "queue.text"}
        | rows,
        forms={"image_queue": TURNED, "text_queue": TURNED} | dict.fromkeys(rows, ROW),
    )
