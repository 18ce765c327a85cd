"""VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts (Bao, Wang et al., NeurIPS 2022), figure
1.

All tokens share self-attention; text, images and, in the last blocks, image-text pairs have feed-forward experts of
their own. So one model is a text encoder, an image encoder and a fusion encoder. The block of figure 1 is
`modules.multiway.MoMEBlock`.

Differs from the paper, as the official code: the contrastive loss is the mean of two, one through each modality's own
experts in all blocks and one in which the last blocks use the vision-language experts; base and large have relative
positions, of both modalities and all layers in one table (base-plus: absolute ones); text carries two type
embeddings, BERT's segment and the modality. Differs from the official code: text may have any length (there it is
padded to 40).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.models.vlmo.config import VLMoConfig
from diptych.modules.embeddings import (
    PatchEmbedding,
    PatchEmbeddingWithoutPosition,
    TextEmbedding,
    modality_row,
)
from diptych.modules.heads import ITCHead, ITMHead, LogScale, MLMHead
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.multiway import MoMEBlock, MoMEFusion
from diptych.modules.pool import Pooler
from diptych.modules.position import RelativePositions, resize_bicubic_plain
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.protocols import UnsupportedOperation

ITC_HEADS = ("itc", "itc_vl")
"""The ITC heads, in the order of the branches: modality experts, vision-language experts."""


class VLMo(nn.Module):
    """One transformer of mixture-of-modality-experts blocks over word and patch embeddings."""

    def __init__(self, config: VLMoConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim, depth, relative = config.dim, config.depth, config.relative_position
        self.dim, self.vocab_size, self.num_itc_branches = dim, config.vocab_size, config.num_itc_branches
        max_length = 0 if relative else config.text_length
        self.words = embedders.build_text(dim) or TextEmbedding(
            config.vocab_size, max_length, dim, dropout=config.drop_path, word=embedders.build_word(dim)
        )  # dropout: the official code passes the rate of drop path
        self.patches = embedders.build_image(dim, None if relative else config.grid) or (
            PatchEmbeddingWithoutPosition(dim, config.patch_size)
            if relative
            else PatchEmbedding(dim, config.patch_size, config.grid, resize_bicubic_plain)
        )
        self.modality = nn.Embedding(1 + config.num_images, dim)  # row 0: text; row 1 + image_index: that image
        drop_path = torch.linspace(0, config.drop_path, depth, device="cpu").tolist()
        blocks = nn.ModuleList(
            MoMEBlock(
                dim,
                config.num_heads,
                config.mlp_dim,
                i >= config.vl_start_layer,
                config.layer_scale or None,
                drop_path[i],
            )
            for i in range(depth)
        )
        positions = RelativePositions(depth, config.num_heads, config.grid, config.text_length) if relative else None
        self.transformer = MoMEFusion(blocks, nn.LayerNorm(dim, 1e-6), Pooler(dim), positions)
        self.apply(init_transformer)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim)) if config.with_mask_token else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, image: Image | Regions, text: Text) -> FusedTokens:
        """Both modalities after the fusion encoder, pooled from the text's [CLS] token."""
        return self.fuse(self.encode_text(text), self.encode_image(image))

    def encode_text(self, text: Text) -> Tokens:
        """Word embeddings, before the transformer."""
        return self.words(text)

    def encode_image(self, image: Image | Regions) -> Tokens:
        """The class token and patch embeddings, before the transformer."""
        return self.patches(image)

    def encode_masked(self, image: Image, masked: Bool[Tensor, "b cells"]) -> Tokens:
        """Image tokens as from `encode_image`, with the mask token at the `masked` patches (section 3.3).

        Raises UnsupportedOperation if there is no mask token.
        """
        if self.mask_token is None:
            raise UnsupportedOperation(self.unsupported()["encode_masked"])
        return self.patches(image, masked, self.mask_token)

    def unsupported(self) -> dict[str, str]:
        """The operations that this model lacks, each with the reason and the setting to change."""
        why = "this VLMo has no mask token for masked patches: set model.with_mask_token True"
        return {} if self.mask_token is not None else {"encode_masked": why}

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """The tokens of one modality after the transformer, through that modality's experts."""
        return self.transformer.encode_unimodal(self._add_modality(tokens))

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """The class token of one modality, for each of the `num_itc_branches`."""
        if self.num_itc_branches == 1:
            return (self.encode_unimodal(tokens).first(),)
        branches = self.transformer.forward_unimodal_and_fused(self._add_modality(tokens))
        return tuple(branch.first() for branch in branches)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both modalities through the transformer as one sequence, with vision-language experts in the last blocks."""
        return self.transformer(self._add_modality(text), self._add_modality(image))

    def _add_modality(self, tokens: Tokens) -> Tokens:
        """The tokens plus their modality embedding; several images of one sample have one each."""
        row = torch.tensor(modality_row(tokens, self.modality), device=self.modality.weight.device)
        return tokens.add(self.modality(row))

    def pretraining_heads(self) -> nn.ModuleDict:
        """ITM, MLM and ITC (figure 1); one ITC head for each branch, with a scale of its own."""
        heads = nn.ModuleDict({"itm": ITMHead(self.dim), "mlm": MLMHead(self.dim, self.vocab_size)})
        for name in ITC_HEADS[: self.num_itc_branches]:
            heads[name] = ITCHead(self.dim, self.dim, self.dim, LogScale(), bias=False)
        return heads.apply(init_transformer)
