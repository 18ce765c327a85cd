"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021), figure 1.

Differs: exact GELU, bicubic antialiased position resizing and weights drawn normally as timm (the JAX code uses the tanh
form, zoom of order 1 and Xavier's rule). With ``pooling="average"`` patches are averaged and normalised, and tokens have no final norm, as timm. The
classifier is one linear layer, as where the paper fine-tunes; with `representation` a hidden layer of that width and tanh stand
before it, as where the paper pre-trains on ImageNet-21k (timm's `pre_logits`, JAX's `representation_size`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Regions
from diptych.modules.block import PreNormBlock, activation_named
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.position import Resize, resize_bicubic
from diptych.modules.tokens import Tokens
from diptych.protocols import UnsupportedOperation


class ViT(nn.Module):
    """Patches and a class token through pre-norm transformer blocks, then a linear classifier.

    `grid`: rows and columns of the learned position grid; other image sizes resize it by `resize`. `classes` 0: no
    classifier. `eps`: of every LayerNorm.
    """

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, patch_size: int = 16,
        grid: tuple[int, int] = (14, 14), num_classes: int = 1000, representation: int = 0, pooling: str = "cls", dropout: float = 0.0,
        resize: Resize = resize_bicubic, activation: str = "gelu", eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__()
        if pooling not in ("cls", "average"):
            raise ValueError(f"pooling is 'cls' or 'average', not {pooling!r}")
        self.dim, self.pooling = dim, pooling
        self.patches = PatchEmbedding(dim, patch_size, grid, resize, dropout=dropout)
        self.blocks = nn.ModuleList(
            PreNormBlock(dim, num_heads, mlp_dim, eps, dropout, activation_named(activation)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps)
        self.representation = nn.Linear(dim, representation) if representation else None
        self.head = nn.Linear(representation or dim, num_classes) if num_classes else None
        self.apply(init_transformer)

    def encode_image(self, image: Image | Regions) -> Tokens:
        tokens = self.patches(image)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.map(self.norm) if self.pooling == "cls" else tokens

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        if self.head is None:
            raise UnsupportedOperation("this ViT was built without a classifier (classes=0)")
        tokens = self.encode_image(image)
        pooled = tokens.first() if self.pooling == "cls" else self.norm(tokens.select(name="patches").mean())
        return self.head(pooled if self.representation is None else self.representation(pooled).tanh())
