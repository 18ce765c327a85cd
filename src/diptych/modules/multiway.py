"""Transformers with modality experts.

- Mixture of modality experts (VLMo, figure 1): self-attention is shared, feed-forward networks are per modality.
- Multiway transformer (BEiT-3, figure 2): every layer is per modality, only the softmax of attention is shared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.modules.attention import KVCache, SelfAttention, scaled_dot_product_attention
from diptych.modules.block import FeedForward, Residual
from diptych.modules.position import RelativePositions
from diptych.modules.tokens import FusedTokens, Layout, Tokens


class ModalityFFN(nn.Module):
    """One network per modality: text tokens go through `text`, image tokens through `image`."""

    def __init__(self, text: nn.Module, image: nn.Module):
        super().__init__()
        self.text, self.image = text, image

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.map_each({"text": self.text, "image": self.image})


class PreNormFeedForward(nn.Module):
    """LayerNorm, then a feed-forward network."""

    def __init__(self, dim: int, mlp_dim: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.feedforward = FeedForward(dim, mlp_dim)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.feedforward(self.norm(x))


class MoMEBlock(nn.Module):
    """A pre-norm block whose feed-forward networks are experts (VLMo, figure 1).

    There is one for text, one for images and, with `vl_expert`, one for the fused tokens of both modalities. Attention
    has no key bias, as in BEiT. `scale` and `drop_path`: see Residual.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        vl_expert: bool,
        scale: float | None = None,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.attention = SelfAttention(dim, num_heads, key_bias=False)
        self.add_attended = Residual(dim, scale, drop_path)
        self.modality_ffn = ModalityFFN(PreNormFeedForward(dim, mlp_dim, eps), PreNormFeedForward(dim, mlp_dim, eps))
        self.vl_ffn = PreNormFeedForward(dim, mlp_dim, eps) if vl_expert else None
        self.add_fed = Residual(dim, scale, drop_path)

    def forward(self, tokens: Tokens, bias: Float[Tensor, "h n m"] | None = None, fused: bool = False) -> Tokens:
        """`fused`: the tokens go to the vision-language expert, if this block has one."""
        tokens = self.add_attended(tokens, self.attention(tokens.map(self.norm), None, bias))
        vl_expert = self.vl_ffn if fused else None
        return self.add_fed(tokens, self.modality_ffn(tokens) if vl_expert is None else tokens.map(vl_expert))


class MoMEFusion(nn.Module):
    """Fusion of concatenated text and image tokens by MoME blocks and a final norm, pooled at the first text token.

    Source: VLMo, figure 1.
    """

    def __init__(
        self, blocks: nn.ModuleList, norm: nn.Module, pooler: nn.Module, positions: RelativePositions | None = None
    ):
        super().__init__()
        self.blocks, self.norm, self.pooler, self.positions = blocks, norm, pooler, positions

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        both = Tokens.concat(text, image)
        for block, bias in zip(self.blocks, self._biases(both.layout), strict=True):
            both = block(both, bias, fused=True)
        text, image = both.map(self.norm).split(text.layout, image.layout)
        return FusedTokens(text, image, self.pooler(text.first()))

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through its own expert in every block."""
        for block, bias in zip(self.blocks, self._biases(tokens.layout), strict=True):
            tokens = block(tokens, bias)
        return tokens.map(self.norm)

    def forward_unimodal_and_fused(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """One modality through its own experts; and through the fused ones, from the first block that has one."""
        unimodal, fused = tokens, None
        for block, bias in zip(self.blocks, self._biases(tokens.layout), strict=True):
            if block.vl_ffn is not None:
                fused = block(unimodal if fused is None else fused, bias, fused=True)
            unimodal = block(unimodal, bias)
        return unimodal.map(self.norm), (unimodal if fused is None else fused).map(self.norm)

    def _biases(self, layout: Layout) -> Sequence[Float[Tensor, "h n n"] | None]:
        """The relative position bias of each block's attention scores."""
        return [None] * len(self.blocks) if self.positions is None else self.positions(layout)


class MultiwayBlock(nn.Module):
    """Pre-norm block with sub-LayerNorm, all of whose layers exist once per modality.

    Sub-LayerNorm (Magneto: Wang et al. 2022, figure 2): a further norm in each branch, before its last projection.
    `drop_path`: see Residual.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, eps: float = 1e-5, dropout: float = 0.0, drop_path: float = 0.0
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.norm1 = norms(dim, eps)
        self.qkv = ModalityFFN(nn.Linear(dim, 3 * dim), nn.Linear(dim, 3 * dim))
        self.inner_norm = norms(dim, eps)
        self.out = ModalityFFN(nn.Linear(dim, dim), nn.Linear(dim, dim))
        self.norm2 = norms(dim, eps)
        self.feedforward = ModalityFFN(_feedforward(dim, mlp_dim, eps), _feedforward(dim, mlp_dim, eps))
        self.dropout = nn.Dropout(dropout)
        self.add = Residual(dim, None, drop_path)

    def forward(
        self, tokens: Tokens, allowed: Bool[Tensor, "n m"] | None = None, cache: KVCache | None = None
    ) -> Tokens:
        query, key, value = self.qkv(self.norm1(tokens)).values.chunk(3, -1)
        key_layout = tokens.layout
        if cache is not None:
            key, value, key_layout = cache.update(self, key, value, key_layout)
        context = Tokens(
            scaled_dot_product_attention(query, key, value, self.num_heads, tokens.layout, key_layout, allowed),
            tokens.layout,
        )
        tokens = self.add(tokens, self.out(self.inner_norm(context)).map(self.dropout))
        return self.add(tokens, self.feedforward(self.norm2(tokens)).map(self.dropout))


def norms(dim: int, eps: float) -> ModalityFFN:
    """A LayerNorm per modality."""
    return ModalityFFN(nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps))


def _feedforward(dim: int, mlp_dim: int, eps: float) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(dim, mlp_dim),
            gelu=nn.GELU(),
            norm=nn.LayerNorm(mlp_dim, eps),
            fc2=nn.Linear(mlp_dim, dim),
        )
    )


class MultiwayFusion(nn.Module):
    """Fusion of concatenated image and text tokens by multiway blocks; `pooler` takes both modalities' tokens.

    `norm` None: no final norm.
    """

    def __init__(self, blocks: nn.ModuleList, norm: ModalityFFN | None, pooler: nn.Module):
        super().__init__()
        self.blocks, self.norm, self.pooler = blocks, norm, pooler

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through its own layers."""
        return self.encode(tokens)

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        return self._fuse(text, image, None)

    def fuse_causal(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Tokens as from `forward`, under `prefix_causal_mask`."""
        return self._fuse(text, image, prefix_causal_mask(text.layout, image.layout))

    def _fuse(self, text: Tokens, image: Tokens, allowed: Bool[Tensor, "n n"] | None) -> FusedTokens:
        image, text = self.encode(Tokens.concat(image, text), allowed).split(image.layout, text.layout)
        return FusedTokens(text, image, self.pooler(text, image))

    def encode(
        self, tokens: Tokens, allowed: Bool[Tensor, "n m"] | None = None, cache: KVCache | None = None
    ) -> Tokens:
        """Tokens of any modalities through the blocks and the final norm."""
        for block in self.blocks:
            tokens = block(tokens, allowed, cache)
        return tokens if self.norm is None else self.norm(tokens)


def prefix_causal_mask(text: Layout, image: Layout) -> Bool[Tensor, "n n"]:
    """The attention mask of image, then text columns: image to image; each text token to the image and earlier text."""
    n, m = image.mask.shape[1], text.mask.shape[1]
    allowed = torch.ones(n + m, n + m, dtype=torch.bool, device=text.mask.device).tril()
    allowed[:n, :n] = True
    return allowed
