"""VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts (Bao, Wang et al., NeurIPS 2022), figure 1.

All tokens share attention; text, images and, in the last blocks, both together have feed-forward experts of their own. So
one model is a text encoder, an image encoder and a fusion of both.

Differs from the paper, as the official code: contrast is the mean of two, one of each modality's own experts throughout and
one in which the last blocks are those of both; base and large have relative positions, of both modalities and all layers in
one table, where base-plus has absolute ones; text carries two type vectors, BERT's own and the modality's. Differs from the
official code: text may have any length, where it must be padded to 40 there.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.modules.embeddings import PatchEmbedding, PatchEmbeddingWithoutPosition, TextEmbedding
from diptych.modules.heads import ITCHead, ITMHead, LogScale, MLMHead
from diptych.modules.init import init_transformer
from diptych.modules.multiway import MoMEBlock, MoMEFusion
from diptych.modules.pool import Pooler
from diptych.modules.position import RelativePositions, resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.protocols import UnsupportedOperation

CONTRASTS = ("contrast", "contrast_together")
"""The contrast heads, in the order of the readouts."""


class VLMo(nn.Module):
    """`together`: the first block with an expert for both modalities (`depth`: none has one, as before images and texts meet).

    `relative`: positions stand in attention (base, large), and `text_length` is how far apart words may be; else they are
    added to the embeddings (base-plus). `images`: how many a sample may have (NLVR2: two). `scale`: where LayerScale begins; 0: there is none (base-plus). `readouts`: how
    contrast reads a modality: 1, by its own experts; 2, also by those of both. `drop`: the share of samples that the last
    block is left out for, falling to none in the first; and the dropout of the text embeddings. `hides`: there is a mask token
    for hidden patches, which the stage on images alone needs, and no other stage and no official checkpoint has.
    """

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, vl_start_layer: int = 10, patch_size: int = 16,
        grid: tuple[int, int] = (14, 14), vocab_size: int = 30522, text_length: int = 196, num_images: int = 1,
        relative: bool = True, scale: float = 0.1, num_itc_branches: int = 2, drop_path: float = 0.1, with_mask_token: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.vocab_size, self.num_itc_branches = dim, vocab_size, num_itc_branches
        self.words = TextEmbedding(vocab_size, 0 if relative else text_length, dim, dropout=drop_path)
        self.patches = (
            PatchEmbeddingWithoutPosition(dim, patch_size)
            if relative
            else PatchEmbedding(dim, patch_size, grid, resize_bicubic_plain)
        )
        self.modality = nn.Embedding(1 + num_images, dim)  # row 0: text; row 1 + slot: that image
        drops = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        blocks = nn.ModuleList(
            MoMEBlock(dim, num_heads, mlp_dim, i >= vl_start_layer, scale or None, drops[i]) for i in range(depth)
        )
        positions = RelativePositions(depth, num_heads, grid, text_length) if relative else None
        self.transformer = MoMEFusion(blocks, nn.LayerNorm(dim, 1e-6), Pooler(dim), positions)
        self.apply(init_transformer)
        self.hidden_patch = nn.Parameter(torch.empty(1, 1, dim)) if with_mask_token else None
        if self.hidden_patch is not None:
            nn.init.trunc_normal_(self.hidden_patch, std=0.02)

    def encode_text(self, text: Text) -> Tokens:
        return self.words(text)

    def encode_image(self, image: Image | Regions) -> Tokens:
        return self.patches(image)

    def encode_masked(self, image: Image, hidden: Bool[Tensor, "b cells"]) -> Tokens:
        """As `encode_image`; where `hidden`, the mask token stands for a patch (section 3.3, which takes BEiT's)."""
        if self.hidden_patch is None:
            raise UnsupportedOperation(self.unsupported()["encode_masked"])
        return self.patches(image, hidden, self.hidden_patch)

    def unsupported(self) -> dict[str, str]:
        why = "this VLMo has no mask token to hide patches with: set model.with_mask_token True"
        return {} if self.hidden_patch is not None else {"encode_masked": why}

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        return self.transformer.encode_unimodal(self._typed(tokens))

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        if self.num_itc_branches == 1:
            return (self.encode_unimodal(tokens).first(),)
        return tuple(read.first() for read in self.transformer.forward_unimodal_and_fused(self._typed(tokens)))

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        return self.transformer(self._typed(text), self._typed(image))

    def _typed(self, tokens: Tokens) -> Tokens:
        """With the vector of their modality; several images of one sample have one each."""
        row = 0 if tokens.layout.spans[0].modality == "text" else 1 + tokens.image_index
        return tokens.add(self.modality(torch.tensor(row, device=self.modality.weight.device)))

    def pretraining_heads(self) -> nn.ModuleDict:
        """Figure 1: matching, masked words and contrast; of contrast one for each readout, with a scale of its own."""
        heads = nn.ModuleDict({"match": ITMHead(self.dim), "words": MLMHead(self.dim, self.vocab_size)})
        for name in CONTRASTS[: self.num_itc_branches]:
            heads[name] = ITCHead(self.dim, self.dim, self.dim, LogScale(), bias=False)
        return heads.apply(init_transformer)
