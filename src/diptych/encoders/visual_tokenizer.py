"""BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (Peng et al. 2022), figure 2.

A ViT gives each patch a short unit vector, the nearest of a codebook takes its place, and a small ViT tells from those what a
teacher sees there: so the codes come to mean something. What BEiT-3 guesses of hidden patches are these codes.

Differs: the teacher is any network that sees a grid of features (here a CNN, in the paper CLIP's ViT), told from what it
usually sees; the decoder has no class token; dead codes begin anew.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from diptych.batch import Image
from diptych.modules.block import PreNormBlock
from diptych.modules.codebook import Codebook
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.normalization import CENTRED, MeanStd, renormalize
from diptych.modules.pool import RunningMean
from diptych.modules.position import resize_bicubic, resize_grid_inside
from diptych.modules.tokens import Tokens


class VisualTokenizer(nn.Module):
    """The defaults are the paper's base size, with its decoder of three blocks. `features`: the teacher's width."""

    def __init__(
        self,
        dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_dim: int = 3072, patch_size: int = 16,
        grid: tuple[int, int] = (14, 14), num_codes: int = 8192, code_dim: int = 32, decoder_depth: int = 3,
        feature_dim: int = 512, decay: float = 0.99, patience: int = 10,
    ):  # fmt: skip
        super().__init__()
        self.dim, self.patch_size, self.grid = dim, patch_size, grid
        self.patches = PatchEmbedding(dim, patch_size, grid, resize_bicubic)
        self.encoder = nn.ModuleList(PreNormBlock(dim, num_heads, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.to_code = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, code_dim))
        self.codebook = Codebook(num_codes, code_dim, decay, patience)
        self.feature_mean = RunningMean(feature_dim)
        self.from_code = nn.Linear(code_dim, dim)
        self.position = nn.Parameter(torch.zeros(*grid, dim))
        self.decoder = nn.ModuleList(PreNormBlock(dim, num_heads, mlp_dim) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim, 1e-6)
        self.to_feature = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, feature_dim))
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.position, std=0.02)

    def encode_image(self, image: Image) -> Tokens:
        """A unit vector for each patch, before the nearest code takes its place."""
        tokens = self.patches(image)
        for block in self.encoder:
            tokens = block(tokens)
        short = tokens.select(name="patches").map(self.norm).map(self.to_code)
        return short.map(lambda x: F.normalize(x.float(), dim=-1))

    def quantize(self, tokens: Tokens) -> tuple[Tokens, Int[Tensor, " t"]]:
        """The nearest code in the place of each real vector, and which it is, sample after sample. Gradients pass straight
        through to what stood there.
        """
        real = tokens.pack()
        codes = self.codebook.nearest(real.values)
        nearest = Tokens(real.values + (self.codebook.vectors[codes] - real.values).detach(), real.layout)
        return nearest if tokens.packed else Tokens(nearest.to_padded(), tokens.layout), codes

    def decode_codes(self, codes: Tokens) -> Tokens:
        """What the teacher sees in each patch, from what it usually sees."""
        (span,) = codes.layout.spans
        assert span.grid is not None
        inside = codes.mask.unflatten(1, span.grid)
        tokens = codes.map(self.from_code).add(resize_grid_inside(self.position, inside, resize_bicubic))
        for block in self.decoder:
            tokens = block(tokens)
        return tokens.map(self.decoder_norm).map(self.to_feature)


def resized(image: Image, old: int, new: int) -> Image:
    """Pictures in which patches of `new` pixels lie where those of `old` pixels lay; the same where these are equal."""
    if old == new:
        return image
    size = [side // old * new for side in image.pixels.shape[-2:]]
    pixels = F.interpolate(image.pixels.float(), size, mode="bilinear", antialias=True)
    return Image(pixels, (image.sizes * new + old - 1) // old)


class FrozenTokenizer:
    """A tokenizer that has learned: it is saved with no model, hence not a Module. `size`: how many codes it has. `given`, `wanted`:
    how the pixels that it is shown are normalised, and how those were that it learned from. `patch`: that of the model which is asked
    for its codes (0: its own); where they differ it is shown each picture larger or smaller, so that there is a code for each of the
    model's patches (BEiT too shows its tokenizer pictures of another size).
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        given: MeanStd = CENTRED,
        wanted: MeanStd = CENTRED,
        patch_size: int = 0,
    ):
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.patch, self.size = patch_size or tokenizer.patch_size, len(tokenizer.codebook.vectors)
        self.given, self.wanted = given, wanted

    @torch.no_grad()
    def __call__(self, image: Image) -> Int[Tensor, "b cells"]:
        """The code of each patch, -1 where there is none."""
        if image.pixels.shape[1] == 3:  # colours, no CNN's map
            image = resized(image, self.patch, self.tokenizer.patch_size)
            image = replace(image, pixels=renormalize(image.pixels, self.given, self.wanted))
        tokens = self.tokenizer.to(image.pixels.device).encode_image(image)
        codes = torch.full_like(tokens.mask, -1, dtype=torch.long)
        codes[tokens.mask] = self.tokenizer.quantize(tokens)[1]
        return codes

    def unused(self) -> float:
        """See Codebook.unused."""
        return self.tokenizer.codebook.unused().item()

    def entropy(self) -> float:
        """See Codebook.entropy."""
        return self.tokenizer.codebook.entropy()
