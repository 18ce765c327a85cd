"""BERT's names, as the official codes of ALBEF, BLIP and others keep them, and ours."""

from __future__ import annotations

from diptych.checkpoints.mapping import fused, weight_and_bias

PARTS = ("query", "key", "value")

WORDS = {
    "word_embeddings.weight": "word.weight",
    "position_embeddings.weight": "position.weight",
    **weight_and_bias("LayerNorm", "norm"),
}
"""Within ``embeddings.``, and within ours (layers.embed.TextEmbedding); segments aside."""

ATTENTION = (
    fused([f"attention.self.{part}" for part in PARTS], "attention.qkv")
    | weight_and_bias("attention.output.dense", "attention.out")
    | weight_and_bias("attention.output.LayerNorm", "norm1")
)
FED = (
    weight_and_bias("intermediate.dense", "feedforward.grow")
    | weight_and_bias("output.dense", "feedforward.shrink")
    | weight_and_bias("output.LayerNorm", "norm2")
)
LAYER = ATTENTION | FED
"""Within ``layer.N.``, and within ours (layers.block.PostNormBlock)."""

CONTEXT = (
    weight_and_bias("crossattention.self.query", "cross.query")
    | weight_and_bias("crossattention.self.key", "cross.key")
    | weight_and_bias("crossattention.self.value", "cross.value")
    | weight_and_bias("crossattention.output.dense", "cross.out")
    | weight_and_bias("crossattention.output.LayerNorm", "cross_norm")
)
"""What a layer that attends to a context has besides."""
