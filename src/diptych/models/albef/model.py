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
from diptych.modules.attention import Cache, Causal
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import TextEmbedding
from diptych.modules.heads import Contrast, Match, Temperature, Vocabulary
from diptych.modules.init import init_transformer
from diptych.modules.position import resize_bicubic_plain
from diptych.modules.tokens import Pair, Tokens
from diptych.protocols import BuiltWithout


class ALBEF(nn.Module):
    """`text_depth` layers read text alone, then `fusion_depth` layers beside each of the `images` (NLVR2: two).

    `decoder_depth`: layers that write answers, over an embedding and a word head of their own; 0: it writes none.
    """

    def __init__(
        self,
        image_width: int = 768, image_depth: int = 12, image_heads: int = 12, image_hidden: int = 3072, patch: int = 16,
        grid: tuple[int, int] = (16, 16), width: int = 768, text_depth: int = 6, fusion_depth: int = 6, heads: int = 12,
        hidden: int = 3072, vocabulary: int = 30522, text_length: int = 512, joint: int = 256, images: int = 1,
        decoder_depth: int = 0, dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.image_width, self.width, self.vocabulary, self.joint = image_width, width, vocabulary, joint

        def layers(depth: int, context_width: int | None = None) -> nn.ModuleList:
            return nn.ModuleList(
                PostNormBlock(width, heads, hidden, dropout=dropout, context_width=context_width) for _ in range(depth)
            )

        self.image = ViT(
            image_width, image_depth, image_heads, image_hidden, patch, grid, classes=0, resize=resize_bicubic_plain
        )
        self.words = TextEmbedding(vocabulary, text_length, width, dropout=dropout)
        self.text = layers(text_depth)
        self.fusion = nn.ModuleList(layers(images, image_width) for _ in range(fusion_depth))
        for first, *others in self.fusion:  # type: ignore[misc]
            for other in others:
                other.cross.key, other.cross.value = first.cross.key, first.cross.value
        self.images = images
        self.answer_words = TextEmbedding(vocabulary, text_length, width, dropout=dropout) if decoder_depth else None
        self.decoder = layers(decoder_depth, width)
        self.answer_head = Vocabulary(width, vocabulary, tied=self.answer_words.word) if self.answer_words else None
        self.apply(init_transformer)

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.image.encode_image(image)

    def encode_text(self, text: Text) -> Tokens:
        tokens = self.words(text)
        for block in self.text:
            tokens = block(tokens)
        return tokens

    def unimodal(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        return (tokens.first(),)

    def fuse(self, text: Tokens, image: Tokens) -> Pair:
        return self.fuse_several(text, (image,))

    def fuse_several(self, text: Tokens, images: tuple[Tokens, ...]) -> Pair:
        if len(images) != self.images:
            raise ValueError(f"this ALBEF was built for {self.images} images, not {len(images)}")
        for pair in self.fusion:
            for block, image in zip(pair, images, strict=True):  # type: ignore[call-overload]
                text = block(text, image)
        return Pair(text, images[0], text.first())

    def decode(self, text: Text, context: Tokens, cache: Cache | None = None) -> Float[Tensor, "b n vocabulary"]:
        if self.answer_words is None or self.answer_head is None:
            raise BuiltWithout(self.lacks()["decode"])
        tokens = self.answer_words(text, 0 if cache is None else cache.length)
        for block in self.decoder:
            tokens = block(tokens, context, Causal(padding=False), cache)
        return self.answer_head(tokens.canvas())

    def lacks(self) -> dict[str, str]:
        found = {
            "foretell": "an ALBEF's decoder reads questions that have met images, not images: take a BLIP or a CoCa"
        }
        if self.answer_words is None:
            found["decode"] = "this ALBEF was built without a decoder: set model.decoder_depth over 0"
        if self.images > 1:
            found["fuse"] = f"this ALBEF was built for {self.images} images at once: set model.images to 1"
        return found

    def heads(self) -> nn.ModuleDict:
        """What pre-training asks: contrast of the towers, and after fusion whether both match, and the hidden words."""
        heads = {
            "contrast": Contrast(self.image_width, self.width, self.joint, Temperature()),
            "match": Match(self.width),
            "words": Vocabulary(self.width, self.vocabulary, tied=self.words.word),
        }
        return nn.ModuleDict(heads).apply(init_transformer)
