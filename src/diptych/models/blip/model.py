"""BLIP: Bootstrapping Language-Image Pre-training (Li et al., ICML 2022), figure 2.

A ViT, and a BERT in three roles: text encoder, image-grounded text encoder (cross-attention to the image; the first
token is [ENC]) and image-grounded text decoder (causal; the first token is [DEC]). Encoder and decoder share everything
but self-attention. For question answering they share nothing, and the decoder cross-attends to the encoded question
(figure 5 a).

Differs: attention has no dropout of its own, and the ViT no stochastic depth, which the official code has for VQA,
NLVR2 and ViT-L. One dropout mask of a text's embedding serves all its roles, but for the first token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.blip.config import BLIPConfig
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.modules.attention import Causal, Context, KVCache, SharedContext, expanded
from diptych.modules.block import PostNormBlock, activation_named, project_once
from diptych.modules.embeddings import TextEmbedding, word_table
from diptych.modules.fusion import DualImageBlock, pooled_cross_attention
from diptych.modules.heads import ITCHead, ITMHead, MLMHead, Temperature
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.position import resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.protocols import UnsupportedOperation


class GroundedEncoder(nn.Module):
    """BERT with cross-attention to a context in every layer. `enc_token_id`: [ENC], a grounded text's first token."""

    def __init__(self, words: nn.Module, blocks: nn.ModuleList, enc_token_id: int):
        super().__init__()
        self.words, self.blocks, self.enc_token_id = words, blocks, enc_token_id

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """The tokens after all layers, without cross-attention."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def encode_grounded(self, text: Tokens, context: Context | tuple[Tokens, ...]) -> Tokens:
        """The tokens, their first one replaced by [ENC], after all layers with cross-attention to `context`."""
        tokens = self.with_enc_token(text)
        for block in self.blocks:
            if not isinstance(context, tuple):
                project_once(block, context)  # type: ignore[arg-type]  # a ModuleList
            tokens = block(tokens, context)
        return tokens

    def with_enc_token(self, text: Tokens) -> Tokens:
        """The embedded text, its first token replaced by [ENC]."""
        ids = torch.full((len(text), 1), self.enc_token_id, device=text.mask.device)
        first = self.words(Text(ids, torch.ones_like(ids, dtype=torch.bool))).select(name="cls")  # b 1 dim
        return Tokens.concat(first, text.select(name="words"))


class GroundedDecoder(nn.Module):
    """Causal BERT with cross-attention to a context. `bos_token_id`: [DEC], which every text starts with."""

    def __init__(self, words: TextEmbedding, blocks: nn.ModuleList, bos_token_id: int, lm_head: MLMHead):
        super().__init__()
        self.words, self.blocks, self.bos_token_id = words, blocks, bos_token_id
        self.lm_head = lm_head

    def forward(self, text: Text, context: Context, cache: KVCache | None = None) -> Tokens:
        """The hidden states of `text`; with a `cache` of its newest tokens only."""
        start, ids = 0 if cache is None else cache.length, text.ids
        if start == 0:
            ids = torch.cat([torch.full_like(ids[:, :1], self.bos_token_id), ids[:, 1:]], 1)
        tokens = self.words(Text(ids, text.mask), start)  # b n dim
        for block in self.blocks:
            project_once(block, context)  # type: ignore[arg-type]  # a ModuleList
            tokens = block(tokens, context, Causal(padding=False), cache)
        return tokens


class BLIP(nn.Module):
    """Image encoder, text encoder and text decoder, as far as `config.variant` has them."""

    def __init__(self, config: BLIPConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        self.image_dim, self.dim, self.embed_dim = config.image_dim, config.dim, config.embed_dim
        self.variant = variant = config.variant
        image = ViTConfig(
            dim=config.image_dim,
            depth=config.image_depth,
            num_heads=config.image_num_heads,
            mlp_dim=config.image_mlp_dim,
            patch_size=config.patch_size,
            grid=config.grid,
            num_classes=0,
            activation=config.image_activation,
            eps=config.image_eps,
        )
        self.image = ViT(image, embedders, resize_bicubic_plain)
        self.encoder = self.decoder = None
        if variant == "nlvr2":
            words = _encoder_words(config, embedders)
            blocks = nn.ModuleList(_dual_image_block(config, i) for i in range(config.depth))
            self.encoder = GroundedEncoder(words, blocks, config.enc_token_id)
        elif variant != "caption":
            words = _encoder_words(config, embedders)
            self.encoder = GroundedEncoder(words, _blocks(config, config.image_dim), config.enc_token_id)
        if variant in ("caption", "vqa"):
            context_dim = config.dim if variant == "vqa" else config.image_dim
            self.decoder = _decoder(config, _words(config), _blocks(config, context_dim))
        elif variant == "pretraining" and self.encoder is not None:
            blocks = _blocks(config, config.image_dim)
            for block, shared in zip(blocks, self.encoder.blocks, strict=True):
                block.cross, block.cross_norm = shared.cross, shared.cross_norm
                block.feedforward, block.norm2 = shared.feedforward, shared.norm2
            words = self.encoder.words
            self.decoder = _decoder(config, words if isinstance(words, TextEmbedding) else _words(config), blocks)
        self.apply(init_transformer)

    def forward(
        self, image: Image | Regions | tuple[Image | Regions, ...], text: Text
    ) -> FusedTokens | Float[Tensor, "b n vocab_size"]:
        """The text after the image-grounded text encoder, pooled from [ENC].

        Of the variant "caption", whose only text model is the decoder: the logits of the token after each token.

        Args:
            image: one image for each text; a pair of them for the variant "nlvr2".
            text: b texts.
        """
        if isinstance(image, tuple):
            images = tuple(self.encode_image(one).with_image_index(i) for i, one in enumerate(image))
            return self.fuse_images(self.encode_text(text), images)
        if self.encoder is None:
            return self.next_token_logits(text, self.encode_image(image))
        return self.fuse(self.encode_text(text), self.encode_image(image))

    @property
    def text_encoder(self) -> GroundedEncoder:
        """The text encoder. Raises UnsupportedOperation if there is none."""
        if self.encoder is None:
            raise UnsupportedOperation(self.unsupported()["encode_text"])
        return self.encoder

    @property
    def text_decoder(self) -> GroundedDecoder:
        """The text decoder. Raises UnsupportedOperation if there is none."""
        if self.decoder is None:
            raise UnsupportedOperation(self.unsupported()["next_token_logits"])
        return self.decoder

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The class token and the patches after the ViT."""
        return self.image.encode_image(image)

    def encode_text(self, text: Text) -> Tokens:
        """Word embeddings with positions, before the first layer of any role."""
        return self.text_encoder.words(text)

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """A text's tokens after the text encoder, without an image."""
        return self.text_encoder.encode_unimodal(tokens)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """The class token of an image, or of a text after the text encoder."""
        return ((tokens if tokens.layout.spans[0].modality == "image" else self.encode_unimodal(tokens)).first(),)

    def fuse(self, text: Tokens, image: Context) -> FusedTokens:
        """The text after the image-grounded text encoder, pooled from [ENC].

        Raises UnsupportedOperation for the variants "caption" and "nlvr2".
        """
        if (why := self.unsupported().get("fuse")) is not None:
            raise UnsupportedOperation(why)
        text = self.text_encoder.encode_grounded(text, image)
        return FusedTokens(text, expanded(image), text.first())

    def before_image(self, text: Tokens) -> Tokens:
        """The text, its first token replaced by [ENC], after the first layer's self-attention.

        Raises UnsupportedOperation as `fuse` does.
        """
        if (why := self.unsupported().get("fuse")) is not None:
            raise UnsupportedOperation(why)
        first: PostNormBlock = self.text_encoder.blocks[0]  # type: ignore[assignment]
        return first.self_attend(self.text_encoder.with_enc_token(text))

    def pooled_pairs(self, text: Tokens, image: SharedContext) -> Float[Tensor, "b d"]:
        """[ENC] after the image-grounded text encoder, from texts after `before_image`."""
        blocks: list[PostNormBlock] = list(self.text_encoder.blocks)  # type: ignore[arg-type]
        return pooled_cross_attention(blocks, text, image)

    def fuse_images(self, text: Tokens, images: tuple[Tokens, ...]) -> FusedTokens:
        """The text after cross-attention to two images (variant "nlvr2"), pooled from [ENC].

        Raises UnsupportedOperation for the other variants, and ValueError for another number of images.
        """
        if (why := self.unsupported().get("fuse_images")) is not None:
            raise UnsupportedOperation(why)
        if len(images) != 2:
            raise ValueError(f"this BLIP (variant 'nlvr2') fuses a text with 2 images, got {len(images)}: give a pair")
        text = self.text_encoder.encode_grounded(text, images)
        return FusedTokens(text, images[0], text.first())

    def next_token_logits(
        self, text: Text, context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocab_size"]:
        """Logits of the token after each token of `text`; `context`: an image, or a fused question ("vqa")."""
        return self.get_output_embeddings()(self.decode_hidden_states(text, context, cache).to_padded())

    def decode_hidden_states(self, text: Text, context: Context, cache: KVCache | None = None) -> Tokens:
        """The decoder's hidden states, before the LM head."""
        return self.text_decoder(text, context, cache)

    def get_output_embeddings(self) -> MLMHead:
        """The decoder's LM head."""
        return self.text_decoder.lm_head

    def unsupported(self) -> dict[str, str]:
        """The operations that this variant lacks, each with the reason and the setting to change."""
        reasons: dict[str, str] = {}
        if self.encoder is None:
            why = "this BLIP has no text encoder (variant 'caption'): set model.variant to 'pretraining' or 'retrieval'"
            reasons |= dict.fromkeys(("encode_text", "encode_unimodal", "fuse", "fuse_images"), why)
        if self.variant == "nlvr2":
            why = "this BLIP fuses a text with two images (variant 'nlvr2')"
            other = "set model.variant to 'pretraining' or 'retrieval'"
            reasons |= dict.fromkeys(("encode_unimodal", "pooled_features"), f"{why}: {other}")
            reasons["fuse"] = f"{why}: give a pair of images, or {other}"
        elif self.encoder is not None:
            why = f"this BLIP fuses a text with one image (variant {self.variant!r})"
            reasons["fuse_images"] = f"{why}: give one image, or set model.variant to 'nlvr2'"
        if self.decoder is None:
            why = f"this BLIP has no text decoder (variant {self.variant!r})"
            reasons["next_token_logits"] = f"{why}: set model.variant to 'pretraining' or 'caption'"
        if self.variant == "vqa":
            why = "this BLIP's decoder attends to fused questions, not to images (variant 'vqa')"
            reasons["decode_hidden_states"] = f"{why}: set model.variant to 'pretraining' or 'caption'"
        return reasons

    def pretraining_heads(self) -> nn.ModuleDict:
        """ITC and ITM on the encoder, for pre-training and retrieval; the decoder has its LM head itself."""
        contrast = ITCHead(self.image_dim, self.dim, self.embed_dim, Temperature())
        return nn.ModuleDict({"itc": contrast, "itm": ITMHead(self.dim)}).apply(init_transformer)


def _words(config: BLIPConfig, word: nn.Module | None = None) -> TextEmbedding:
    return TextEmbedding(
        config.vocab_size, config.text_length, config.dim, segments=0, eps=config.eps, dropout=config.dropout, word=word
    )


def _encoder_words(config: BLIPConfig, embedders: InputEmbeddings) -> nn.Module:
    return embedders.build_text(config.dim) or _words(config, embedders.build_word(config.dim))


def _blocks(config: BLIPConfig, context_dim: int) -> nn.ModuleList:
    """BERT layers with cross-attention to a context of width `context_dim`."""
    return nn.ModuleList(
        PostNormBlock(
            config.dim,
            config.num_heads,
            config.mlp_dim,
            config.eps,
            config.dropout,
            context_dim,
            activation_named(config.activation),
        )
        for _ in range(config.depth)
    )


def _dual_image_block(config: BLIPConfig, i: int) -> DualImageBlock:
    """Layer `i` of the encoder of two images (section 5.4, figure 5 b).

    The first layers average the cross-attention to both, the others merge it linearly.
    """
    return DualImageBlock(
        config.dim,
        config.num_heads,
        config.mlp_dim,
        config.image_dim,
        i >= config.average_image_attention,
        config.dropout,
        config.eps,
        activation_named(config.activation),
    )


def _decoder(config: BLIPConfig, words: TextEmbedding, blocks: nn.ModuleList) -> GroundedDecoder:
    activation = activation_named(config.activation)
    lm_head = MLMHead(config.dim, config.vocab_size, config.eps, word_table(words), activation)
    return GroundedDecoder(words, blocks, config.bos_token_id, lm_head)
