"""BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (Peng et al. 2022), figure 2.

A ViT encodes each patch as a low-dimensional unit vector, which is replaced by the nearest code of a codebook; a small
ViT decodes the codes to a teacher's features. BEiT-3 predicts these codes at masked patches.

Differs: the teacher is any network with a grid of features (here a CNN, in the paper CLIP's ViT), less their mean; the
decoder has no class token; dead codes are reset.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from diptych.batch import Image
from diptych.encoders.visual_tokenizer_config import VisualTokenizerConfig
from diptych.modules.block import PreNormBlock
from diptych.modules.codebook import Codebook
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.normalization import CENTRED, MeanStd, renormalize
from diptych.modules.pool import RunningMean
from diptych.modules.position import resize_bicubic, resize_grid_inside
from diptych.modules.tokens import Tokens


class VisualTokenizer(nn.Module):
    """Encoder, codebook and decoder of teacher features (figure 2, left)."""

    def __init__(self, config: VisualTokenizerConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        dim, num_heads, mlp_dim = config.dim, config.num_heads, config.mlp_dim
        self.dim, self.patch_size, self.grid = dim, config.patch_size, config.grid
        self.patches = embedders.build_image(dim, config.grid) or PatchEmbedding(
            dim, config.patch_size, config.grid, resize_bicubic
        )
        self.encoder = nn.ModuleList(PreNormBlock(dim, num_heads, mlp_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.to_code = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, config.code_dim))
        self.codebook = Codebook(config.num_codes, config.code_dim, config.decay, config.patience)
        self.feature_mean = RunningMean(config.feature_dim)
        self.from_code = nn.Linear(config.code_dim, dim)
        self.position = nn.Parameter(torch.zeros(*config.grid, dim))
        self.decoder = nn.ModuleList(PreNormBlock(dim, num_heads, mlp_dim) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim, 1e-6)
        self.to_feature = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, config.feature_dim))
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, image: Image) -> tuple[Tokens, Int[Tensor, " t"]]:
        """Predicted teacher features of each patch, relative to their mean; and the code of each real patch."""
        quantized, codes = self.quantize(self.encode_image(image))
        return self.decode_codes(quantized), codes

    def encode_image(self, image: Image) -> Tokens:
        """A unit vector for each patch, before quantization."""
        tokens = self.patches(image)
        for block in self.encoder:
            tokens = block(tokens)
        short = tokens.select(name="patches").map(self.norm).map(self.to_code)
        return short.map(lambda x: F.normalize(x.float(), dim=-1))

    def quantize(self, tokens: Tokens) -> tuple[Tokens, Int[Tensor, " t"]]:
        """Each vector replaced by its nearest code (straight-through gradient), and the indices of the codes."""
        real = tokens.pack()
        codes = self.codebook.nearest(real.values)
        nearest = Tokens(real.values + (self.codebook.vectors[codes] - real.values).detach(), real.layout)
        return nearest if tokens.packed else Tokens(nearest.to_padded(), tokens.layout), codes

    def decode_codes(self, codes: Tokens) -> Tokens:
        """The teacher's feature of each patch, less its mean, decoded from the codes."""
        (span,) = codes.layout.spans
        assert span.grid is not None
        inside = codes.mask.unflatten(1, span.grid)
        tokens = codes.map(self.from_code).add(resize_grid_inside(self.position, inside, resize_bicubic))
        for block in self.decoder:
            tokens = block(tokens)
        return tokens.map(self.decoder_norm).map(self.to_feature)


def resized(image: Image, old: int, new: int) -> Image:
    """The images resized by new / old, so that patches of `old` pixels become patches of `new` pixels."""
    if old == new:
        return image
    size = [side // old * new for side in image.pixels.shape[-2:]]
    pixels = F.interpolate(image.pixels.float(), size, mode="bilinear", antialias=True)
    return Image(pixels, (image.sizes * new + old - 1) // old)


class FrozenTokenizer:
    """A trained visual tokenizer. Not a Module, so that it is not saved with a model. `size`: its number of codes.

    Args:
        input_norm, trained_norm: normalisation of the pixels passed in, and of those that the tokenizer was trained on.
        patch_size: patch size of the model that predicts the codes (0: the tokenizer's own). If they differ, images are
            resized, so that there is one code per patch of the model (BEiT too resizes images for its tokenizer).
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        input_norm: MeanStd = CENTRED,
        trained_norm: MeanStd = CENTRED,
        patch_size: int = 0,
    ):
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.patch, self.size = patch_size or tokenizer.patch_size, len(tokenizer.codebook.vectors)
        self.input_norm, self.trained_norm = input_norm, trained_norm

    @torch.no_grad()
    def __call__(self, image: Image) -> Int[Tensor, "b cells"]:
        """The code of each patch, -1 at padding."""
        if image.pixels.shape[1] == 3:  # colours, not feature maps of a CNN
            image = resized(image, self.patch, self.tokenizer.patch_size)
            image = replace(image, pixels=renormalize(image.pixels, self.input_norm, self.trained_norm))
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
