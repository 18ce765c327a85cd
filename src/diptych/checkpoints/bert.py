"""BERT's weight names, as in the official code of ALBEF, BLIP and others, and ours."""

from __future__ import annotations

from diptych.checkpoints.mapping import concat_layers, weight_and_bias

PARTS = ("query", "key", "value")

TEXT_EMBEDDING = {
    "word_embeddings.weight": "word.weight",
    "position_embeddings.weight": "position.weight",
    **weight_and_bias("LayerNorm", "norm"),
}
"""Within ``embeddings.``, and within our modules.embeddings.TextEmbedding; without the segment embedding."""

ATTENTION = (
    concat_layers([f"attention.self.{part}" for part in PARTS], "attention.qkv")
    | weight_and_bias("attention.output.dense", "attention.out")
    | weight_and_bias("attention.output.LayerNorm", "norm1")
)
FEED_FORWARD = (
    weight_and_bias("intermediate.dense", "feedforward.fc1")
    | weight_and_bias("output.dense", "feedforward.fc2")
    | weight_and_bias("output.LayerNorm", "norm2")
)
LAYER = ATTENTION | FEED_FORWARD
"""Within ``layer.N.``, and within our modules.block.PostNormBlock."""

CROSS_ATTENTION = (
    weight_and_bias("crossattention.self.query", "cross.query")
    | weight_and_bias("crossattention.self.key", "cross.key")
    | weight_and_bias("crossattention.self.value", "cross.value")
    | weight_and_bias("crossattention.output.dense", "cross.out")
    | weight_and_bias("crossattention.output.LayerNorm", "cross_norm")
)
"""The additional weights of a layer with cross-attention."""
