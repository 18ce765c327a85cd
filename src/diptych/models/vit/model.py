"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021), figure 1.

Differs: exact GELU, bicubic antialiased resizing of positions and weights drawn from a normal distribution, as timm
(the JAX code uses the tanh form, zoom of order 1 and Xavier initialisation). With ``pooling="average"`` the mean of the
patches is normalised and the tokens have no final norm, as timm. The classifier is one linear layer, as in the
paper's fine-tuning; with `representation` a hidden layer of that dim and tanh precede it, as in its pre-training on
ImageNet-21k (timm's `pre_logits`, JAX's `representation_size`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions
from diptych.models.vit.config import ViTConfig
from diptych.modules.block import PreNormBlock, activation_named
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.position import Resize, resize_bicubic
from diptych.modules.tokens import Tokens
from diptych.protocols import UnsupportedOperation


class ViT(nn.Module):
    """Patches and a class token through pre-norm transformer blocks, then a linear classifier.

    Args:
        config: sizes and options.
        embedders: input embeddings instead of the model's own.
        resize: how positions are resized for images whose grid is not `config.grid`.
    """

    def __init__(self, config: ViTConfig, embedders: InputEmbeddings = OWN, resize: Resize = resize_bicubic):
        super().__init__()
        dim, dropout, activation = config.dim, config.dropout, config.activation
        self.dim, self.pooling = dim, config.pooling
        self.patches = embedders.build_image(dim, config.grid) or PatchEmbedding(
            dim, config.patch_size, config.grid, resize, dropout=dropout
        )
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, config.num_heads, config.mlp_dim, config.eps, dropout, activation_named(activation))
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, config.eps)
        self.representation = nn.Linear(dim, config.representation) if config.representation else None
        self.head = nn.Linear(config.representation or dim, config.num_classes) if config.num_classes else None
        self.apply(init_transformer)

    def forward(self, image: Image) -> Float[Tensor, "b classes"]:
        """Class logits of each image; see `classify`."""
        return self.classify(image)

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The class token and the patches after the last block; normalised if the class token is pooled."""
        tokens = self.patches(image)  # b (1 + patches) dim
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.map(self.norm) if self.pooling == "cls" else tokens

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        """Class logits of each image. Raises UnsupportedOperation if there is no classifier."""
        if self.head is None:
            raise UnsupportedOperation("this ViT was built without a classifier: set model.num_classes above 0")
        tokens = self.encode_image(image)
        pooled = tokens.first() if self.pooling == "cls" else self.norm(tokens.select(name="patches").mean())  # b dim
        if self.representation is not None:
            pooled = self.representation(pooled).tanh()  # b representation
        return self.head(pooled)  # b classes
