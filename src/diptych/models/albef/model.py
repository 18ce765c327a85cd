"""ALBEF: Align before Fuse (Li et al., NeurIPS 2021), figure 1.

A ViT reads the image, the first half of a BERT the text; both are aligned by contrast, and then the second half of the BERT
fuses them: text that attends to the image in every layer. Question answering adds a decoder that reads the fused question
(figure 4 a), NLVR2 a second image (figure 4 b): each fusion layer is there twice, the first reads one image and the second
the other, and both share the projections of what they read to keys and values.

Differs: attention has no dropout of its own.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.vit.model import ViT
from diptych.modules.attention import Causal, KVCache
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import TextEmbedding
from diptych.modules.heads import ITCHead, ITMHead, MLMHead, Temperature
from diptych.modules.init import init_transformer
from diptych.modules.position import resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.protocols import UnsupportedOperation


class ALBEF(nn.Module):
    """`text_depth` layers read text alone, then `fusion_depth` layers beside each of the `images` (NLVR2: two).

    `decoder_depth`: layers that write answers, over an embedding and a word head of their own; 0: it writes none.
    """

    def __init__(
        self,
        image_dim: int = 768, image_depth: int = 12, image_num_heads: int = 12, image_mlp_dim: int = 3072, patch_size: int = 16,
        grid: tuple[int, int] = (16, 16), dim: int = 768, text_depth: int = 6, fusion_depth: int = 6, num_heads: int = 12,
        mlp_dim: int = 3072, vocab_size: int = 30522, text_length: int = 512, embed_dim: int = 256, num_images: int = 1,
        decoder_depth: int = 0, dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.image_dim, self.dim, self.vocab_size, self.embed_dim = image_dim, dim, vocab_size, embed_dim

        def layers(depth: int, context_width: int | None = None) -> nn.ModuleList:
            return nn.ModuleList(
                PostNormBlock(dim, num_heads, mlp_dim, dropout=dropout, context_dim=context_width) for _ in range(depth)
            )

        self.image = ViT(
            image_dim,
            image_depth,
            image_num_heads,
            image_mlp_dim,
            patch_size,
            grid,
            num_classes=0,
            resize=resize_bicubic_plain,
        )
        self.words = TextEmbedding(vocab_size, text_length, dim, dropout=dropout)
        self.text = layers(text_depth)
        self.fusion = nn.ModuleList(layers(num_images, image_dim) for _ in range(fusion_depth))
        for first, *others in self.fusion:  # type: ignore[misc]
            for other in others:
                other.cross.key, other.cross.value = first.cross.key, first.cross.value
        self.num_images = num_images
        self.answer_words = TextEmbedding(vocab_size, text_length, dim, dropout=dropout) if decoder_depth else None
        self.decoder = layers(decoder_depth, dim)
        self.answer_head = MLMHead(dim, vocab_size, tied=self.answer_words.word) if self.answer_words else None
        self.apply(init_transformer)

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.image.encode_image(image)

    def encode_text(self, text: Text) -> Tokens:
        tokens = self.words(text)
        for block in self.text:
            tokens = block(tokens)
        return tokens

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        return (tokens.first(),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        return self.fuse_images(text, (image,))

    def fuse_images(self, text: Tokens, images: tuple[Tokens, ...]) -> FusedTokens:
        if len(images) != self.num_images:
            raise ValueError(f"this ALBEF was built for {self.num_images} images, not {len(images)}")
        for pair in self.fusion:
            for block, image in zip(pair, images, strict=True):  # type: ignore[call-overload]
                text = block(text, image)
        return FusedTokens(text, images[0], text.first())

    def next_token_logits(
        self, text: Text, context: Tokens, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocabulary"]:
        if self.answer_words is None or self.answer_head is None:
            raise UnsupportedOperation(self.unsupported()["next_token_logits"])
        tokens = self.answer_words(text, 0 if cache is None else cache.length)
        for block in self.decoder:
            tokens = block(tokens, context, Causal(padding=False), cache)
        return self.answer_head(tokens.to_padded())

    def unsupported(self) -> dict[str, str]:
        found = {
            "decode_hidden_states": "an ALBEF's decoder reads questions that have met images, not images: take a BLIP or a CoCa"
        }
        if self.answer_words is None:
            found["next_token_logits"] = "this ALBEF was built without a decoder: set model.decoder_depth over 0"
        if self.num_images > 1:
            found["fuse"] = f"this ALBEF was built for {self.num_images} images at once: set model.num_images to 1"
        return found

    def pretraining_heads(self) -> nn.ModuleDict:
        """What pre-training asks: contrast of the towers, and after fusion whether both match, and the hidden words."""
        heads = {
            "contrast": ITCHead(self.image_dim, self.dim, self.embed_dim, Temperature()),
            "match": ITMHead(self.dim),
            "words": MLMHead(self.dim, self.vocab_size, tied=self.words.word),
        }
        return nn.ModuleDict(heads).apply(init_transformer)
