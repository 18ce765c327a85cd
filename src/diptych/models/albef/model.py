"""ALBEF: Align before Fuse (Li et al., NeurIPS 2021), figure 1.

A ViT encodes the image, the first half of a BERT the text; a contrastive loss aligns both, and the second half of the
BERT fuses them: its layers cross-attend from the text to the image. Question answering adds a decoder that
cross-attends to the fused question (figure 4 a). NLVR2 adds a second image (figure 4 b): each fusion layer has two
blocks, the first for one image and the second for the other, which share their key and value projections.

The momentum model of figure 1 is `objectives.momentum.MomentumDistillation`.

Differs: attention has no dropout of its own.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.albef.config import ALBEFConfig
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.modules.attention import Causal, Context, KVCache, SharedContext, expanded
from diptych.modules.block import PostNormBlock, project_once
from diptych.modules.embeddings import TextEmbedding, word_table
from diptych.modules.fusion import pooled_cross_attention
from diptych.modules.heads import ITCHead, ITMHead, MLMHead, Temperature
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.position import resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.protocols import UnsupportedOperation


class ALBEF(nn.Module):
    """Image encoder, text encoder and multimodal encoder; with `decoder_depth` also an answer decoder."""

    def __init__(self, config: ALBEFConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        self.image_dim, self.dim, self.embed_dim = config.image_dim, config.dim, config.embed_dim
        self.vocab_size, self.num_images = config.vocab_size, config.num_images
        image = ViTConfig(
            dim=config.image_dim,
            depth=config.image_depth,
            num_heads=config.image_num_heads,
            mlp_dim=config.image_mlp_dim,
            patch_size=config.patch_size,
            grid=config.grid,
            num_classes=0,
        )

        def embedding(word: nn.Module | None = None) -> TextEmbedding:
            return TextEmbedding(config.vocab_size, config.text_length, config.dim, dropout=config.dropout, word=word)

        def layers(depth: int, context_dim: int | None = None) -> nn.ModuleList:
            return nn.ModuleList(
                PostNormBlock(
                    config.dim, config.num_heads, config.mlp_dim, dropout=config.dropout, context_dim=context_dim
                )
                for _ in range(depth)
            )

        self.image = ViT(image, embedders, resize_bicubic_plain)
        self.words = embedders.build_text(config.dim) or embedding(embedders.build_word(config.dim))
        self.text = layers(config.text_depth)
        self.fusion = nn.ModuleList(layers(config.num_images, config.image_dim) for _ in range(config.fusion_depth))
        for first, *others in self.fusion:  # type: ignore[misc]  # a ModuleList
            for other in others:
                other.cross.key, other.cross.value = first.cross.key, first.cross.value
        self.answer_words = embedding() if config.decoder_depth else None
        self.decoder = layers(config.decoder_depth, config.dim)
        self.answer_head = (
            MLMHead(config.dim, config.vocab_size, tied=word_table(self.answer_words)) if self.answer_words else None
        )
        self.apply(init_transformer)

    def forward(self, image: Image | Regions | tuple[Image | Regions, ...], text: Text) -> FusedTokens:
        """The text after the multimodal encoder, pooled from its [CLS] token.

        Args:
            image: one image for each text; a tuple of `num_images` for a model of several (NLVR2).
            text: b texts.
        """
        images = image if isinstance(image, tuple) else (image,)
        encoded = tuple(self.encode_image(one).with_image_index(i) for i, one in enumerate(images))
        return self.fuse_images(self.encode_text(text), encoded)

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The class token and the patches after the ViT."""
        return self.image.encode_image(image)

    def encode_text(self, text: Text) -> Tokens:
        """The tokens after the text encoder, the first half of the BERT."""
        tokens = self.words(text)  # b n dim
        for block in self.text:
            tokens = block(tokens)
        return tokens

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """The class token."""
        return (tokens.first(),)

    def fuse(self, text: Tokens, image: Context) -> FusedTokens:
        """The text after cross-attention to one image. Raises UnsupportedOperation for a model of several."""
        if (why := self.unsupported().get("fuse")) is not None:
            raise UnsupportedOperation(why)
        return self.fuse_images(text, (image,))

    def fuse_images(self, text: Tokens, images: tuple[Context, ...]) -> FusedTokens:
        """The text after cross-attention to each of the `num_images`. Raises ValueError if there are more or fewer."""
        if len(images) != self.num_images:
            raise ValueError(
                f"this ALBEF fuses a text with {self.num_images} images, got {len(images)}: set model.num_images"
            )
        for blocks in self.fusion:
            for block, image in zip(blocks, images, strict=True):  # type: ignore[call-overload]  # a ModuleList
                project_once(block, image)
                text = block(text, image)
        return FusedTokens(text, expanded(images[0]), text.first())

    def before_image(self, text: Tokens) -> Tokens:
        """The text after the first fusion layer's self-attention. Raises UnsupportedOperation for several images."""
        return self._fusion_blocks[0].self_attend(text)

    def pooled_pairs(self, text: Tokens, image: SharedContext) -> Float[Tensor, "b d"]:
        """The text's [CLS] after fusion, from texts after `before_image`."""
        return pooled_cross_attention(self._fusion_blocks, text, image)

    @property
    def _fusion_blocks(self) -> list[PostNormBlock]:
        """The fusion layers of a model of one image."""
        if (why := self.unsupported().get("fuse")) is not None:
            raise UnsupportedOperation(why)
        return [block for (block,) in self.fusion]  # type: ignore[misc]  # a ModuleList

    def next_token_logits(
        self, text: Text, context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocab_size"]:
        """Logits of the token after each token of an answer; `context`: the fused question.

        Raises UnsupportedOperation if there is no decoder.
        """
        if self.answer_words is None or self.answer_head is None:
            raise UnsupportedOperation(self.unsupported()["next_token_logits"])
        tokens = self.answer_words(text, 0 if cache is None else cache.length)
        for block in self.decoder:
            project_once(block, context)  # type: ignore[arg-type]  # a ModuleList
            tokens = block(tokens, context, Causal(padding=False), cache)
        return self.answer_head(tokens.to_padded())

    def unsupported(self) -> dict[str, str]:
        """The operations that this model lacks, each with the reason and the setting to change."""
        reasons = {
            "decode_hidden_states": "an ALBEF's decoder attends to fused questions, not to images: use BLIP or CoCa"
        }
        if self.answer_words is None:
            reasons["next_token_logits"] = "this ALBEF was built without a decoder: set model.decoder_depth above 0"
        if self.num_images > 1:
            reasons["fuse"] = (
                f"this ALBEF fuses a text with {self.num_images} images at once: set model.num_images to 1"
            )
        return reasons

    def pretraining_heads(self) -> nn.ModuleDict:
        """ITC on the two encoders; ITM and MLM after fusion."""
        heads = {
            "itc": ITCHead(self.image_dim, self.dim, self.embed_dim, Temperature()),
            "itm": ITMHead(self.dim),
            "mlm": MLMHead(self.dim, self.vocab_size, tied=word_table(self.words)),
        }
        return nn.ModuleDict(heads).apply(init_transformer)
