"""CLIP with a ResNet (Radford et al., ICML 2021, section 2.4): its other image encoder.

A ResNet with a stem of three convolutions and average pooling before every strided one; attention by the mean of its last
map to all cells stands in place of the final pooling.

Differs: images of any size are read, each by itself, with the attention's positions resized; the official code reads one
size. The last projection of that attention is the contrast's own, as a ViT's is. Biases begin at zero, as in models/clip.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.models.clip.model import TextTower, contrast_head
from diptych.modules.attention import CrossAttention
from diptych.modules.embeddings import grid_features
from diptych.modules.pool import last_token
from diptych.modules.position import resize_bicubic, resize_grid_inside
from diptych.modules.tokens import Span, Tokens

EXPANSION = 4


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut; where the map shrinks it is averaged, in both branches."""

    def __init__(self, inputs: int, dim: int, stride: int):
        super().__init__()
        outputs = EXPANSION * dim
        self.conv1, self.bn1 = nn.Conv2d(inputs, dim, 1, bias=False), nn.BatchNorm2d(dim)
        self.conv2, self.bn2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.conv3, self.bn3 = nn.Conv2d(dim, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shrink = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        branch = self.bn1(self.conv1(x)).relu()
        branch = self.shrink(self.bn2(self.conv2(branch)).relu())
        branch = self.bn3(self.conv3(branch))
        return (branch + (x if self.downsample is None else self.downsample(self.shrink(x)))).relu()


class ResNet(nn.Module):
    """Pictures to their last map, a cell for every 32 pixels. `depths`: blocks of each of the four stages."""

    def __init__(self, dim: int, depths: tuple[int, ...]):
        super().__init__()
        half, inputs = dim // 2, dim
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                blocks.append(Bottleneck(inputs, dim * 2**stage, 2 if stage and not i else 1))
                inputs = EXPANSION * dim * 2**stage
            self.stages.append(nn.Sequential(*blocks))
        self.width = inputs
        for block in (part for part in self.modules() if isinstance(part, Bottleneck)):
            nn.init.zeros_(block.bn3.weight)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d i j"]:
        for convolution, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = norm(convolution(x)).relu()
        x = F.avg_pool2d(x, 2)
        for stage in self.stages:
            x = stage(x)
        return x


class AttentionPool(nn.Module):
    """One vector of a map: attention by the mean of its cells to that mean and all cells, each in its place."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(dim**-0.5 * torch.randn(1, 1 + grid[0] * grid[1], dim))
        self.attention = CrossAttention(dim, num_heads)
        self.attention.out = nn.Identity()  # type: ignore[assignment]  # the contrast projects
        for asks in (self.attention.query, self.attention.key, self.attention.value):
            nn.init.normal_(asks.weight, std=dim**-0.5)
            nn.init.zeros_(asks.bias)

    def placed(self, patches: Tokens) -> Tokens:
        """The mean of the cells, as a class token, and the cells; each with its position."""
        (span,) = patches.layout.spans
        assert span.grid is not None
        inside = patches.mask.unflatten(1, span.grid)
        grid = self.position[0, 1:].unflatten(0, self.grid)
        mean = patches.mean()[:, None] + self.position[:, :1]
        cls = Tokens.from_padded(mean, torch.ones_like(patches.mask[:, :1]), Span("image", "cls", 1))
        return Tokens.concat(cls, patches.add(resize_grid_inside(grid, inside, resize_bicubic)))

    def forward(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        return self.attention(tokens.select(name="cls"), tokens).first()


class CLIPResNet(nn.Module):
    """`depths`: blocks of each stage; `width`: channels of the first. The defaults are RN50."""

    def __init__(
        self,
        dim: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), num_heads: int = 32, grid: tuple[int, int] = (7, 7),
        text_dim: int = 512, text_depth: int = 12, text_num_heads: int = 8, text_mlp_dim: int = 2048,
        vocab_size: int = 49408, text_length: int = 77, embed_dim: int = 1024, activation: str = "quick_gelu",
    ):  # fmt: skip
        super().__init__()
        self.text_dim, self.embed_dim = text_dim, embed_dim
        self.image = ResNet(dim, depths)
        self.pool = AttentionPool(self.image.width, num_heads, grid)
        self.text = TextTower(text_dim, text_depth, text_num_heads, text_mlp_dim, vocab_size, text_length, activation)

    def encode_image(self, image: Image) -> Tokens:
        return self.pool.placed(grid_features(self.image, image))

    def encode_text(self, text: Text) -> Tokens:
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """What attention gathers of the image; the text's last token."""
        if tokens.layout.spans[0].modality == "image":
            return (self.pool(tokens),)
        return (last_token(tokens),)

    def pretraining_heads(self) -> nn.ModuleDict:
        """As CLIP's, but that the image's projection has a bias."""
        contrast = contrast_head(self.image.width, self.text_dim, self.embed_dim)
        contrast.image.bias = nn.Parameter(torch.zeros(self.embed_dim))
        return nn.ModuleDict({"contrast": contrast})
