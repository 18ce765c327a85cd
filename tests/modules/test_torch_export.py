"""torch.export works for the blocks of a model over padded tokens of one layout.

It does not work for a whole encoder: image sizes are data, and the shape of the position grid depends on them;
`packing` is a ContextVar. torch.compile breaks the graph at both (and gave the same values when tried, with its eager
backend; that takes too long for a test).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

from diptych.batch import Image, Text
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.modules.tokens import Layout, Tokens

PIXELS = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[24, 32], [16, 8]])
IDS = torch.arange(14).view(2, 7)
MASK = torch.arange(7) < torch.tensor([[7], [5]])


class Blocks(nn.Module):
    """A model's blocks as a function of one tensor: padded token values of a fixed layout."""

    def __init__(self, through: Callable[[Tokens], Tokens], owner: nn.Module, layout: Layout):
        super().__init__()
        self.owner, self.through, self.layout = owner, through, layout
        assert not layout.full  # computed now, so that it is cached before tracing

    def forward(self, values: Tensor) -> Tensor:
        return self.through(Tokens(values, self.layout)).values


class Classifier(nn.Module):
    def __init__(self, model: ViT):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        return self.model.classify(Image(pixels, sizes))


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(dim=32, depth=1, num_heads=4, mlp_dim=64, patch_size=8, grid=(3, 4), num_classes=5)).eval()


def vit_blocks() -> tuple[Blocks, Tensor]:
    model = vit()
    tokens = model.patches(Image(PIXELS, SIZES))

    def through(tokens: Tokens) -> Tokens:
        for block in model.blocks:
            tokens = block(tokens)
        return tokens.map(model.norm)

    return Blocks(through, model, tokens.layout), tokens.values


def vilt_blocks() -> tuple[Blocks, Tensor]:
    torch.manual_seed(0)
    model = ViLT(
        ViLTConfig(dim=32, depth=1, num_heads=4, mlp_dim=64, patch_size=8, grid=(3, 4), vocab_size=40, text_length=9)
    ).eval()
    tokens = Tokens.concat(model.encode_text(Text(IDS, MASK)), model.encode_image(Image(PIXELS, SIZES)))
    return Blocks(model.transformer.encode_unimodal, model, tokens.layout), tokens.values


@torch.no_grad()
@pytest.mark.parametrize("make_blocks", [vit_blocks, vilt_blocks])
@pytest.mark.slow
def test_blocks_over_tokens_of_one_layout_can_be_exported(make_blocks: Callable[[], tuple[Blocks, Tensor]]):
    blocks, values = make_blocks()
    exported = export(blocks, (values,)).module()
    for other in (values, 2 * values.flip(0) + 1):
        torch.testing.assert_close(exported(other), blocks(other))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.xfail(
    strict=True, raises=RuntimeError, reason="the shape of position grids depends on image sizes, which are data"
)
def test_a_whole_classifier_cannot_be_exported():
    export(Classifier(vit()), (PIXELS, SIZES))
