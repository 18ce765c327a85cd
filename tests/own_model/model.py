"""The mean pair: an image is the mean of its patches, a text the mean of its words; their cosine compares them."""

from __future__ import annotations

from diptych.models.mean_pair.config import MeanPairConfig
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.heads import ITCHead, LogScale
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.position import resize_bicubic
from diptych.modules.tokens import Span, Tokens


class MeanPair(nn.Module):
    """Patch embeddings and word embeddings; the projections to the joint space are a head."""

    def __init__(self, config: MeanPairConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        self.dim = config.dim
        self.patches = embedders.build_image(config.dim, config.grid) or PatchEmbedding(
            config.dim, config.patch_size, config.grid, resize_bicubic
        )
        self.word = embedders.build_word(config.dim) or nn.Embedding(config.vocab_size, config.dim)

    def forward(self, image: Image, text: Text) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """The pooled features of images and of texts."""
        return *self.pooled_features(self.encode_image(image)), *self.pooled_features(self.encode_text(text))

    def encode_image(self, image: Image) -> Tokens:
        """The embedded patches."""
        return self.patches(image)

    def encode_text(self, text: Text) -> Tokens:
        """The embedded words."""
        return Tokens.from_padded(self.word(text.ids), text.mask, Span("text", "words", text.ids.shape[1]))

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"]]:
        """The mean of an image's patches, or of a text's words."""
        return (tokens.mean(),)

    def pretraining_heads(self) -> nn.ModuleDict:
        """The head of the contrastive loss (ITC), by the name that objectives call it."""
        return nn.ModuleDict({"itc": ITCHead(self.dim, self.dim, self.dim, LogScale(), bias=False)})
