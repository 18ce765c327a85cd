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
from diptych.modules.attention import Cache, Causal
from diptych.modules.block import PostNormBlock, activation_named
from diptych.modules.embeddings import TextEmbedding
from diptych.modules.fusion import TwinBlock
from diptych.modules.heads import Contrast, Match, Temperature, Vocabulary
from diptych.modules.init import init_transformer
from diptych.modules.position import resize_bicubic_plain
from diptych.modules.tokens import Pair, Tokens
from diptych.protocols import BuiltWithout


class TextEncoder(nn.Module):
    """BERT whose every layer may attend to a context. `ground`: the id of [ENC], which such a text begins with."""

    def __init__(self, words: TextEmbedding, blocks: nn.ModuleList, ground: int):
        super().__init__()
        self.words, self.blocks, self.ground = words, blocks, ground

    def alone(self, tokens: Tokens) -> Tokens:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def grounded(self, text: Tokens, context: Tokens | tuple[Tokens, ...]) -> Tokens:
        ids = torch.full((len(text), 1), self.ground, device=text.real.device)
        first = self.words(Text(ids, torch.ones_like(ids, dtype=torch.bool))).by_span(name="cls")
        tokens = Tokens.join(first, text.by_span(name="words"))
        for block in self.blocks:
            tokens = block(tokens, context)
        return tokens


class GroundedDecoder(nn.Module):
    """BERT that writes of a context, each word seeing those before it. `begin`: the id of [DEC], which every text begins with."""

    def __init__(self, words: TextEmbedding, blocks: nn.ModuleList, begin: int, eps: float, activation: str):
        super().__init__()
        self.words, self.blocks, self.begin = words, blocks, begin
        vocabulary, width = words.word.weight.shape
        self.vocabulary = Vocabulary(width, vocabulary, eps, words.word, activation_named(activation))

    def forward(self, text: Text, context: Tokens, cache: Cache | None = None) -> Tokens:
        start, ids = 0 if cache is None else cache.length, text.ids
        if start == 0:
            ids = torch.cat([torch.full_like(ids[:, :1], self.begin), ids[:, 1:]], 1)
        tokens = self.words(Text(ids, text.real), start)
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
        image_width: int = 768, image_depth: int = 12, image_heads: int = 12, image_hidden: int = 3072, patch: int = 16,
        grid: tuple[int, int] = (14, 14), width: int = 768, depth: int = 12, heads: int = 12, hidden: int = 3072,
        vocabulary: int = 30524, text_length: int = 512, begin: int = 30522, ground: int = 30523,
        joint: int = 256, form: str = "pretraining", averaged: int = 6, dropout: float = 0.1,
        image_activation: str = "gelu", image_eps: float = 1e-6, activation: str = "gelu", eps: float = 1e-12,
    ):  # fmt: skip
        super().__init__()
        if form not in ("pretraining", "retrieval", "caption", "vqa", "nlvr2"):
            raise ValueError(f"form is 'pretraining', 'retrieval', 'caption', 'vqa' or 'nlvr2', not {form!r}")
        self.image_width, self.width, self.joint, self.form = image_width, width, joint, form

        def words() -> TextEmbedding:
            return TextEmbedding(vocabulary, text_length, width, segments=0, eps=eps, dropout=dropout)

        def blocks(context_width: int) -> nn.ModuleList:
            return nn.ModuleList(
                PostNormBlock(width, heads, hidden, eps, dropout, context_width, activation_named(activation))
                for _ in range(depth)
            )

        self.image = ViT(
            image_width, image_depth, image_heads, image_hidden, patch, grid, classes=0, resize=resize_bicubic_plain,
            activation=image_activation, eps=image_eps,
        )  # fmt: skip
        self.encoder = self.decoder = None
        if form == "nlvr2":
            twins = (
                TwinBlock(width, heads, hidden, image_width, i >= averaged, dropout, eps, activation_named(activation))
                for i in range(depth)
            )
            self.encoder = TextEncoder(words(), nn.ModuleList(twins), ground)
        elif form != "caption":
            self.encoder = TextEncoder(words(), blocks(image_width), ground)
        if form in ("caption", "vqa"):
            self.decoder = GroundedDecoder(
                words(), blocks(width if form == "vqa" else image_width), begin, eps, activation
            )
        elif form == "pretraining" and self.encoder is not None:
            own = blocks(image_width)
            for mine, shared in zip(own, self.encoder.blocks, strict=True):
                mine.cross, mine.cross_norm = shared.cross, shared.cross_norm
                mine.feedforward, mine.norm2 = shared.feedforward, shared.norm2
            self.decoder = GroundedDecoder(self.encoder.words, own, begin, eps, activation)
        self.apply(init_transformer)

    @property
    def reading(self) -> TextEncoder:
        """The encoder. Raises BuiltWithout."""
        if self.encoder is None:
            raise BuiltWithout(self.lacks()["encode_text"])
        return self.encoder

    @property
    def writing(self) -> GroundedDecoder:
        """The decoder. Raises BuiltWithout."""
        if self.decoder is None:
            raise BuiltWithout(self.lacks()["decode"])
        return self.decoder

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.image.encode_image(image)

    def encode_text(self, text: Text) -> Tokens:
        return self.reading.words(text)

    def alone(self, tokens: Tokens) -> Tokens:
        """A text's tokens after they have met each other, in the role without an image."""
        return self.reading.alone(tokens)

    def unimodal(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        return ((tokens if tokens.layout.spans[0].modality == "image" else self.alone(tokens)).first(),)

    def fuse(self, text: Tokens, image: Tokens) -> Pair:
        text = self.reading.grounded(text, image)
        return Pair(text, image, text.first())

    def fuse_several(self, text: Tokens, images: tuple[Tokens, ...]) -> Pair:
        text = self.reading.grounded(text, images)
        return Pair(text, images[0], text.first())

    def decode(self, text: Text, context: Tokens, cache: Cache | None = None) -> Float[Tensor, "b n vocabulary"]:
        return self.word_head()(self.foretell(text, context, cache).canvas())

    def foretell(self, text: Text, context: Tokens, cache: Cache | None = None) -> Tokens:
        return self.writing(text, context, cache)

    def word_head(self) -> Vocabulary:
        return self.writing.vocabulary

    def lacks(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.encoder is None:
            why = "this BLIP was built without an encoder (form 'caption'): set model.form to 'pretraining' or 'retrieval'"
            found |= dict.fromkeys(("encode_text", "alone", "fuse", "fuse_several"), why)
        if self.form == "nlvr2":
            why = "this BLIP reads a text beside two images at once (form 'nlvr2'): set model.form to 'pretraining' or 'retrieval'"
            found |= dict.fromkeys(("alone", "unimodal", "fuse"), why)
        if self.decoder is None:
            why = f"this BLIP was built without a decoder (form {self.form!r})"
            found["decode"] = f"{why}: set model.form to 'pretraining' or 'caption'"
        if self.form == "vqa":
            why = "this BLIP's decoder reads questions that have met images, not images (form 'vqa')"
            found["foretell"] = f"{why}: set model.form to 'pretraining' or 'caption'"
        return found

    def heads(self) -> nn.ModuleDict:
        """What pre-training and retrieval ask of the encoder; the decoder has its word head itself."""
        contrast = Contrast(self.image_width, self.width, self.joint, Temperature())
        return nn.ModuleDict({"contrast": contrast, "match": Match(self.width)}).apply(init_transformer)
