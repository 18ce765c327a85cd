"""BLIP: Bootstrapping Language-Image Pre-training (Li et al., ICML 2022), figure 2.

A ViT, and a BERT in three roles: it reads a text alone, reads it beside an image (its first token being [ENC]), and
writes one (its first token being [DEC]). Encoder and decoder share everything but self-attention. For question answering
they share nothing, and the decoder reads the question's tokens (figure 5 a).

Differs: attention has no dropout of its own, and the ViT no stochastic depth, which the official code gives it for VQA,
NLVR2 and ViT-L. A text's embedding is dropped out once for all its roles, but for the first token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.vit.model import ViT
from diptych.modules.attention import Causal, KVCache
from diptych.modules.block import PostNormBlock, activation_named
from diptych.modules.embeddings import TextEmbedding
from diptych.modules.fusion import DualImageBlock
from diptych.modules.heads import ITCHead, ITMHead, MLMHead, Temperature
from diptych.modules.init import init_transformer
from diptych.modules.position import resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.protocols import UnsupportedOperation


class TextEncoder(nn.Module):
    """BERT whose every layer may attend to a context. `ground`: the id of [ENC], which such a text begins with."""

    def __init__(self, words: TextEmbedding, blocks: nn.ModuleList, enc_token_id: int):
        super().__init__()
        self.words, self.blocks, self.enc_token_id = words, blocks, enc_token_id

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def grounded(self, text: Tokens, context: Tokens | tuple[Tokens, ...]) -> Tokens:
        ids = torch.full((len(text), 1), self.enc_token_id, device=text.mask.device)
        first = self.words(Text(ids, torch.ones_like(ids, dtype=torch.bool))).select(name="cls")
        tokens = Tokens.concat(first, text.select(name="words"))
        for block in self.blocks:
            tokens = block(tokens, context)
        return tokens


class GroundedDecoder(nn.Module):
    """BERT that writes of a context, each word seeing those before it. `begin`: the id of [DEC], which every text begins with."""

    def __init__(self, words: TextEmbedding, blocks: nn.ModuleList, bos_token_id: int, eps: float, activation: str):
        super().__init__()
        self.words, self.blocks, self.bos_token_id = words, blocks, bos_token_id
        vocabulary, width = words.word.weight.shape
        self.vocabulary = MLMHead(width, vocabulary, eps, words.word, activation_named(activation))

    def forward(self, text: Text, context: Tokens, cache: KVCache | None = None) -> Tokens:
        start, ids = 0 if cache is None else cache.length, text.ids
        if start == 0:
            ids = torch.cat([torch.full_like(ids[:, :1], self.bos_token_id), ids[:, 1:]], 1)
        tokens = self.words(Text(ids, text.mask), start)
        for block in self.blocks:
            tokens = block(tokens, context, Causal(padding=False), cache)
        return tokens


class BLIP(nn.Module):
    """`form`, as the job needs it: "pretraining" encodes and decodes, sharing; "retrieval" has no decoder, "caption" no
    encoder; "vqa" has both and shares nothing; "nlvr2" has an encoder for two images, whose attention to them is averaged
    in the first `averaged` layers and merged by a linear layer in the others (section 5.4, figure 5 b).
    """

    def __init__(
        self,
        image_dim: int = 768, image_depth: int = 12, image_num_heads: int = 12, image_mlp_dim: int = 3072, patch_size: int = 16,
        grid: tuple[int, int] = (14, 14), dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072,
        vocab_size: int = 30524, text_length: int = 512, bos_token_id: int = 30522, enc_token_id: int = 30523,
        embed_dim: int = 256, variant: str = "pretraining", averaged: int = 6, dropout: float = 0.1,
        image_activation: str = "gelu", image_eps: float = 1e-6, activation: str = "gelu", eps: float = 1e-12,
    ):  # fmt: skip
        super().__init__()
        if variant not in ("pretraining", "retrieval", "caption", "vqa", "nlvr2"):
            raise ValueError(f"form is 'pretraining', 'retrieval', 'caption', 'vqa' or 'nlvr2', not {variant!r}")
        self.image_dim, self.dim, self.embed_dim, self.variant = image_dim, dim, embed_dim, variant

        def words() -> TextEmbedding:
            return TextEmbedding(vocab_size, text_length, dim, segments=0, eps=eps, dropout=dropout)

        def blocks(context_width: int) -> nn.ModuleList:
            return nn.ModuleList(
                PostNormBlock(dim, num_heads, mlp_dim, eps, dropout, context_width, activation_named(activation))
                for _ in range(depth)
            )

        self.image = ViT(
            image_dim, image_depth, image_num_heads, image_mlp_dim, patch_size, grid, num_classes=0, resize=resize_bicubic_plain,
            activation=image_activation, eps=image_eps,
        )  # fmt: skip
        self.encoder = self.decoder = None
        if variant == "nlvr2":
            twins = (
                DualImageBlock(
                    dim, num_heads, mlp_dim, image_dim, i >= averaged, dropout, eps, activation_named(activation)
                )
                for i in range(depth)
            )
            self.encoder = TextEncoder(words(), nn.ModuleList(twins), enc_token_id)
        elif variant != "caption":
            self.encoder = TextEncoder(words(), blocks(image_dim), enc_token_id)
        if variant in ("caption", "vqa"):
            self.decoder = GroundedDecoder(
                words(), blocks(dim if variant == "vqa" else image_dim), bos_token_id, eps, activation
            )
        elif variant == "pretraining" and self.encoder is not None:
            own = blocks(image_dim)
            for mine, shared in zip(own, self.encoder.blocks, strict=True):
                mine.cross, mine.cross_norm = shared.cross, shared.cross_norm
                mine.feedforward, mine.norm2 = shared.feedforward, shared.norm2
            self.decoder = GroundedDecoder(self.encoder.words, own, bos_token_id, eps, activation)
        self.apply(init_transformer)

    @property
    def reading(self) -> TextEncoder:
        """The encoder. Raises BuiltWithout."""
        if self.encoder is None:
            raise UnsupportedOperation(self.unsupported()["encode_text"])
        return self.encoder

    @property
    def writing(self) -> GroundedDecoder:
        """The decoder. Raises BuiltWithout."""
        if self.decoder is None:
            raise UnsupportedOperation(self.unsupported()["next_token_logits"])
        return self.decoder

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.image.encode_image(image)

    def encode_text(self, text: Text) -> Tokens:
        return self.reading.words(text)

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """A text's tokens after they have met each other, in the role without an image."""
        return self.reading.encode_unimodal(tokens)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        return ((tokens if tokens.layout.spans[0].modality == "image" else self.encode_unimodal(tokens)).first(),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        text = self.reading.grounded(text, image)
        return FusedTokens(text, image, text.first())

    def fuse_images(self, text: Tokens, images: tuple[Tokens, ...]) -> FusedTokens:
        text = self.reading.grounded(text, images)
        return FusedTokens(text, images[0], text.first())

    def next_token_logits(
        self, text: Text, context: Tokens, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocabulary"]:
        return self.lm_head()(self.decode_hidden_states(text, context, cache).to_padded())

    def decode_hidden_states(self, text: Text, context: Tokens, cache: KVCache | None = None) -> Tokens:
        return self.writing(text, context, cache)

    def lm_head(self) -> MLMHead:
        return self.writing.vocabulary

    def unsupported(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.encoder is None:
            why = "this BLIP was built without an encoder (form 'caption'): set model.variant to 'pretraining' or 'retrieval'"
            found |= dict.fromkeys(("encode_text", "encode_unimodal", "fuse", "fuse_images"), why)
        if self.variant == "nlvr2":
            why = "this BLIP reads a text beside two images at once (form 'nlvr2'): set model.variant to 'pretraining' or 'retrieval'"
            found |= dict.fromkeys(("encode_unimodal", "pooled_features", "fuse"), why)
        if self.decoder is None:
            why = f"this BLIP was built without a decoder (form {self.variant!r})"
            found["next_token_logits"] = f"{why}: set model.variant to 'pretraining' or 'caption'"
        if self.variant == "vqa":
            why = "this BLIP's decoder reads questions that have met images, not images (form 'vqa')"
            found["decode_hidden_states"] = f"{why}: set model.variant to 'pretraining' or 'caption'"
        return found

    def pretraining_heads(self) -> nn.ModuleDict:
        """What pre-training and retrieval ask of the encoder; the decoder has its word head itself."""
        contrast = ITCHead(self.image_dim, self.dim, self.embed_dim, Temperature())
        return nn.ModuleDict({"contrast": contrast, "match": ITMHead(self.dim)}).apply(init_transformer)
