"""BERT's names, as the official codes of ALBEF, BLIP and others keep them, and ours."""

from __future__ import annotations

from diptych.checkpoints.mapping import both, fused

PARTS = ("query", "key", "value")

WORDS = {
    "word_embeddings.weight": "word.weight",
    "position_embeddings.weight": "position.weight",
    **both("LayerNorm", "norm"),
}
"""Within ``embeddings.``, and within ours (layers.embed.TextEmbedding); segments aside."""

ATTENTION = (
    fused([f"attention.self.{part}" for part in PARTS], "attention.qkv")
    | both("attention.output.dense", "attention.out")
    | both("attention.output.LayerNorm", "norm1")
)
FED = (
    both("intermediate.dense", "feedforward.grow")
    | both("output.dense", "feedforward.shrink")
    | both("output.LayerNorm", "norm2")
)
LAYER = ATTENTION | FED
"""Within ``layer.N.``, and within ours (layers.block.PostNormBlock)."""

CONTEXT = (
    both("crossattention.self.query", "cross.query")
    | both("crossattention.self.key", "cross.key")
    | both("crossattention.self.value", "cross.value")
    | both("crossattention.output.dense", "cross.out")
    | both("crossattention.output.LayerNorm", "cross_norm")
)
"""What a layer that attends to a context has besides."""
