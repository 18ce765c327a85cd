"""CLIP with a ResNet (Radford et al., ICML 2021, section 2.4), its other image encoder.

A ResNet with a stem of three convolutions and average pooling before every strided convolution. Instead of
final pooling, the mean of the last feature map attends to all its cells.

Differs: each image keeps its own size, with the position grid of the attention pooling resized to it; the official code
has one size. The last projection of that attention is the contrastive head's own, as a ViT's is. Biases start at zero,
as in models/clip/model.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.models.clip.config import CLIPResNetConfig
from diptych.models.clip.model import TextTower, contrast_head
from diptych.modules.attention import CrossAttention
from diptych.modules.embeddings import grid_features
from diptych.modules.pool import last_token
from diptych.modules.position import resize_bicubic, resize_grid_inside
from diptych.modules.tokens import Span, Tokens

EXPANSION = 4


class Bottleneck(nn.Module):
    """Three convolutions with a residual connection; a stride is average pooling, in both branches."""

    def __init__(self, in_channels: int, dim: int, stride: int):
        super().__init__()
        out_channels = EXPANSION * dim
        self.conv1, self.bn1 = nn.Conv2d(in_channels, dim, 1, bias=False), nn.BatchNorm2d(dim)
        self.conv2, self.bn2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.conv3, self.bn3 = nn.Conv2d(dim, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        self.downscale = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        branch = self.bn1(self.conv1(x)).relu()
        branch = self.downscale(self.bn2(self.conv2(branch)).relu())
        branch = self.bn3(self.conv3(branch))
        return (branch + (x if self.downsample is None else self.downsample(self.downscale(x)))).relu()


class ResNet(nn.Module):
    """The last feature map of an image, with a cell for every 32 × 32 pixels.

    Args:
        dim: channels of the first stage.
        depths: blocks of each stage.
    """

    def __init__(self, dim: int, depths: tuple[int, ...]):
        super().__init__()
        half, channels = dim // 2, dim
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                blocks.append(Bottleneck(channels, dim * 2**stage, 2 if stage and not i else 1))
                channels = EXPANSION * dim * 2**stage
            self.stages.append(nn.Sequential(*blocks))
        self.out_channels = channels
        for block in (part for part in self.modules() if isinstance(part, Bottleneck)):
            nn.init.zeros_(block.bn3.weight)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d i j"]:
        for convolution, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = norm(convolution(x)).relu()  # b dim (h / 2) (w / 2)
        x = F.avg_pool2d(x, 2)  # b dim (h / 4) (w / 4)
        for stage in self.stages:
            x = stage(x)
        return x  # b out_channels (h / 32) (w / 32)


class AttentionPool(nn.Module):
    """Attention pooling: the mean of all cells is the query; that mean and the cells are keys and values."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(dim**-0.5 * torch.randn(1, 1 + grid[0] * grid[1], dim))
        self.attention = CrossAttention(dim, num_heads)
        self.attention.out = nn.Identity()  # type: ignore[assignment]  # the contrastive head projects
        for projection in (self.attention.query, self.attention.key, self.attention.value):
            nn.init.normal_(projection.weight, std=dim**-0.5)
            nn.init.zeros_(projection.bias)

    def add_positions(self, patches: Tokens) -> Tokens:
        """The mean of the cells as a class token, then the cells, each with its position."""
        (span,) = patches.layout.spans
        assert span.grid is not None
        inside = patches.mask.unflatten(1, span.grid)
        grid = self.position[0, 1:].unflatten(0, self.grid)
        mean = patches.mean()[:, None] + self.position[:, :1]  # b 1 dim
        cls = Tokens.from_padded(mean, torch.ones_like(patches.mask[:, :1]), Span("image", "cls", 1))
        return Tokens.concat(cls, patches.add(resize_grid_inside(grid, inside, resize_bicubic)))

    def forward(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        return self.attention(tokens.select(name="cls"), tokens).first()


class CLIPResNet(nn.Module):
    """A ResNet with attention pooling, and CLIP's text tower."""

    def __init__(self, config: CLIPResNetConfig):
        super().__init__()
        self.text_dim, self.embed_dim = config.text_dim, config.embed_dim
        self.image = ResNet(config.dim, config.depths)
        self.pool = AttentionPool(self.image.out_channels, config.num_heads, config.grid)
        self.text = TextTower(
            config.text_dim,
            config.text_depth,
            config.text_num_heads,
            config.text_mlp_dim,
            config.vocab_size,
            config.text_length,
            config.activation,
        )

    def forward(self, image: Image, text: Text) -> tuple[Float[Tensor, "images d"], Float[Tensor, "texts e"]]:
        """Pooled features of the images and of the texts, before the projections to the joint space."""
        (image_features,) = self.pooled_features(self.encode_image(image))  # images out_channels
        (text_features,) = self.pooled_features(self.encode_text(text))  # texts text_dim
        return image_features, text_features

    def encode_image(self, image: Image) -> Tokens:
        """The last feature map with positions, and its mean in front as a class token."""
        return self.pool.add_positions(grid_features(self.image, image))

    def encode_text(self, text: Text) -> Tokens:
        """The tokens after the text tower, normalised."""
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """The attention-pooled image; a text's last token."""
        if tokens.layout.spans[0].modality == "image":
            return (self.pool(tokens),)
        return (last_token(tokens),)

    def pretraining_heads(self) -> nn.ModuleDict:
        """CLIP's ITC head, but the projection of the image has a bias."""
        contrast = contrast_head(self.image.out_channels, self.text_dim, self.embed_dim)
        contrast.image.bias = nn.Parameter(torch.zeros(self.embed_dim))
        return nn.ModuleDict({"itc": contrast})
