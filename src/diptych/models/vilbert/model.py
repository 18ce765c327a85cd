"""ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations (Lu et al., NeurIPS 2019), figure 1; with task
tokens 12-in-1: Multi-Task Vision and Language Representation Learning (Lu et al., CVPR 2020).

A BERT encodes the words, a narrower stack of blocks the regions of a detector; co-attention layers between them
(`modules.fusion.CoAttentionFusion`) let each stream attend to the other.

Differs from the paper, as the official code: both streams' first tokens go through a linear layer and ReLU before they
are multiplied. Differs from the official code: `q_dense1` and `q_dense2` of every co-attention, which nothing reads
there, are left out, and so is the gate that `dynamic_attention` would add; of the two logits of ITM the second is that
of a match, there the first; attention has no dropout of its own.
"""

from __future__ import annotations

import torch
from torch import nn

from diptych.batch import Regions, Text
from diptych.models.vilbert.config import ViLBERTConfig
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import RegionEmbedding, TextEmbedding, word_table
from diptych.modules.fusion import CoAttentionFusion, CoAttentionLayer, CrossBlock
from diptych.modules.heads import ITMHead, MLMHead, RegionHead
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.pool import ProductPooler
from diptych.modules.tokens import FusedTokens, Span, Tokens


class ViLBERT(nn.Module):
    """A stream of text blocks and a stream of region blocks, with co-attention layers between them."""

    def __init__(self, config: ViLBERTConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim, image_dim, dropout = config.dim, config.image_dim, config.dropout
        self.dim, self.image_dim, self.pooled_dim = dim, image_dim, config.coattention_dim
        self.num_region_targets, self.vocab_size = config.num_region_targets, config.vocab_size
        self.words = embedders.build_text(dim) or TextEmbedding(
            config.vocab_size, config.text_length, dim, dropout=dropout, word=embedders.build_word(dim)
        )
        self.dropout = nn.Dropout(dropout)  # of the task token; the text embedding may be a frozen one without dropout
        self.task = nn.Embedding(config.num_tasks, dim) if config.num_tasks else None
        self.regions = embedders.build_image(image_dim) or RegionEmbedding(
            config.feature_dim, image_dim, dropout=dropout, feature_dropout=embedders.feature_dropout
        )

        def stream(depth: int, width: int, num_heads: int, mlp_dim: int) -> nn.ModuleList:
            return nn.ModuleList(PostNormBlock(width, num_heads, mlp_dim, dropout=dropout) for _ in range(depth))

        def half(width: int, other: int, mlp_dim: int) -> CrossBlock:
            return CrossBlock(
                width, other, config.coattention_num_heads, config.coattention_dim, mlp_dim, dropout=dropout
            )

        self.streams = CoAttentionFusion(
            stream(config.depth, dim, config.num_heads, config.mlp_dim),
            stream(config.image_depth, image_dim, config.image_num_heads, config.image_mlp_dim),
            nn.ModuleList(
                CoAttentionLayer(half(dim, image_dim, config.mlp_dim), half(image_dim, dim, config.image_mlp_dim))
                for _ in config.schedule
            ),
            config.schedule,
            ProductPooler(dim, image_dim, config.coattention_dim, dropout),
        )
        self.apply(init_transformer)

    def forward(self, image: Regions, text: Text) -> FusedTokens:
        """Both streams after the last co-attention, pooled as the product of their first tokens."""
        return self.fuse(self.encode_text(text), self.encode_image(image))

    def encode_text(self, text: Text) -> Tokens:
        """Word embeddings with positions; in 12-in-1 the task token follows [CLS], and has no position.

        Raises ValueError if the text has a task and the model no task tokens, or the other way round.
        """
        words = self.words(text)
        if (self.task is None) != (text.task is None):
            has = "none" if self.task is None else self.task.num_embeddings
            names = "no task" if text.task is None else "a task"
            raise ValueError(
                f"task tokens: the model has {has}, the text names {names}: set both model.num_tasks and Text.task"
            )
        if self.task is None or text.task is None:
            return words
        mask = torch.ones(len(text), 1, dtype=torch.bool, device=text.mask.device)
        task = Tokens.from_padded(self.task(text.task)[:, None], mask, Span("text", "task", 1))  # b 1 dim
        task = task.map(self.words.norm).map(self.dropout)
        return Tokens.concat(words.select(name="cls"), task, words.select(name="words"))

    def encode_image(self, image: Regions) -> Tokens:
        """Embeddings of region features and boxes.

        Raises ValueError if the first region, which is pooled, is not the whole image.
        """
        if not image.has_whole_image:
            raise ValueError("ViLBERT needs the whole image as the first region: call Regions.with_whole_image()")
        return self.regions(image)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both streams after the last co-attention."""
        return self.streams(text, image)

    def pretraining_heads(self) -> nn.ModuleDict:
        """ITM, MLM and the prediction of masked regions (figure 3)."""
        heads = nn.ModuleDict(
            {
                "itm": ITMHead(self.pooled_dim),
                "mlm": MLMHead(self.dim, self.vocab_size, tied=word_table(self.words)),
                "regions": RegionHead(self.image_dim, self.num_region_targets),
            }
        )
        return heads.apply(init_transformer)
