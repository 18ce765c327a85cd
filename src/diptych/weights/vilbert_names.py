"""ViLBERT's official names, of pre-training and of the downstream model, which has all heads at once."""

from __future__ import annotations

from diptych.weights.names import Form, Names, both, fused, under
from diptych.weights.system import Arguments

SWAPPED = Form(
    lambda rows: rows.flip(0), lambda rows: rows.flip(0)
)  # there the first logit says that they belong together
UNREAD = "no forward pass reads it"

SELF = (
    fused([f"attention.self.{part}" for part in ("query", "key", "value")], "attention.qkv")
    | both("attention.output.dense", "attention.out")
    | both("attention.output.LayerNorm", "norm1")
    | both("intermediate.dense", "feedforward.grow")
    | both("output.dense", "feedforward.shrink")
    | both("output.LayerNorm", "norm2")
)
"""Within ``layer.N.`` and ``v_layer.N.``, and ours."""


def _half(own: int, other: int, mark: str) -> dict[str, str]:
    """Within ``c_layer.N.``: the half of stream number `own` (1: image, 2: text), which asks the `other`."""
    return (
        both(f"biattention.query{own}", "attention.query")
        | both(f"biattention.key{other}", "attention.key")
        | both(f"biattention.value{other}", "attention.value")
        | both(f"biOutput.dense{own}", "attention.out")
        | both(f"biOutput.LayerNorm{own}", "norm1")
        | both(f"{mark}_intermediate.dense", "feedforward.grow")
        | both(f"{mark}_output.dense", "feedforward.shrink")
        | both(f"{mark}_output.LayerNorm", "norm2")
    )


MEETING = under("", "text.", _half(2, 1, "t")) | under("", "image.", _half(1, 2, "v"))

OUTSIDE = {
    "bert.embeddings.word_embeddings.weight": "model.words.word.weight",
    "bert.embeddings.position_embeddings.weight": "model.words.position.weight",
    "bert.embeddings.token_type_embeddings.weight": "model.words.segment.weight",
    **both("bert.embeddings.LayerNorm", "model.words.norm"),
    "bert.embeddings.task_embeddings.weight": "model.task.weight",
    **both("bert.v_embeddings.image_embeddings", "model.regions.feature"),
    **both("bert.v_embeddings.image_location_embeddings", "model.regions.box"),
    **both("bert.v_embeddings.LayerNorm", "model.regions.norm"),
    **both("bert.t_pooler.dense", "model.streams.pooler.text"),
    **both("bert.v_pooler.dense", "model.streams.pooler.image"),
}


def _classifier(official: str, ours: str) -> dict[str, str]:
    parts = both("0", "dense") | both("2", "norm") | both("3", "answers")
    return under(f"{official}.logit_fc.", f"{ours}.", parts)


NORMED = tuple(f"vil_prediction.main.{layer}.weight" for layer in (0, 3))
"""The answers' head of the first release (vilbert_beta), which is weight-normed."""

HEADS = {
    **under("vil_prediction.", "heads.vqa.", both("main.0", "main.0") | both("main.3", "main.3")),
    **both("cls.predictions.transform.dense", "heads.words.dense"),
    **both("cls.predictions.transform.LayerNorm", "heads.words.norm"),
    "cls.predictions.bias": "heads.words.bias",
    **both("cls.bi_seq_relationship", "heads.match.linear"),
    **both("cls.imagePredictions.transform.dense", "heads.regions.dense"),
    **both("cls.imagePredictions.transform.LayerNorm", "heads.regions.norm"),
    **both("cls.imagePredictions.decoder", "heads.regions.targets"),
    **_classifier("vil_prediction", "heads.vqa"),
    **_classifier("vil_prediction_gqa", "heads.gqa"),
    **_classifier("vil_binary_prediction", "heads.nlvr2"),
    **both("vil_logit", "heads.choice.linear"),
    **both("vil_tri_prediction", "heads.entailment"),
    **both("vision_logit", "heads.grounding.linear"),
    **both("linguisic_logit", "heads.word.linear"),
}


def names(arguments: Arguments, task: str) -> Names:
    """The table of names that a checkpoint is read and written by."""
    table = OUTSIDE | HEADS
    for i in range(arguments["depth"]):
        table |= under(f"bert.encoder.layer.{i}.", f"model.streams.text.{i}.", SELF)
    for i in range(arguments["image_depth"]):
        table |= under(f"bert.encoder.v_layer.{i}.", f"model.streams.image.{i}.", SELF)
    meetings = range(len(arguments["schedule"]))
    for i in meetings:
        table |= under(f"bert.encoder.c_layer.{i}.", f"model.streams.meetings.{i}.", MEETING)
    unread = [f"bert.encoder.c_layer.{i}.biOutput.q_dense{stream}" for i in meetings for stream in (1, 2)]
    return Names(
        table,
        dead={f"{layer}.{kind}": UNREAD for layer in unread for kind in ("weight", "bias")},
        twins={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
        forms=dict.fromkeys(both("cls.bi_seq_relationship", ""), SWAPPED),
        normed=NORMED,
    )
