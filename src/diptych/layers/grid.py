"""From a convolutional network's last map to tokens, one a cell."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.inputs import Image
from diptych.layers.embed import class_tokens
from diptych.layers.position import grid_inside, resize_bicubic
from diptych.layout import Span
from diptych.tokens import Tokens

Network = Callable[[Tensor], Tensor]
"""Pictures of one size (b, 3, h, w) to their maps (b, features, rows, columns)."""


def cells(network: Network, image: Image) -> Tokens:
    """A token for each cell of each image's last map, in raster order.

    A convolution would see where a canvas ends, so images of one size are read together and cut out of it: what a
    picture gives does not depend on its canvas. (Batch norms in training see each size by itself.)
    """
    sizes, which = torch.unique(image.sizes, dim=0, return_inverse=True)
    maps = [network(image.pixels[which == i, :, :h, :w]) for i, (h, w) in enumerate(sizes.tolist())]
    extents = torch.tensor([x.shape[2:] for x in maps], device=which.device)[which]
    rows, columns = extents.amax(0).tolist()
    canvases = [F.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2])) for x in maps]
    back = torch.cat([(which == i).nonzero().squeeze(1) for i in range(len(sizes))]).argsort()
    values = torch.cat(canvases).index_select(0, back).flatten(2).mT
    inside = torch.arange(rows, device=which.device)[:, None] < extents[:, :1, None]
    inside = inside & (torch.arange(columns, device=which.device) < extents[:, 1:, None])
    return Tokens.of(values, inside.flatten(1), Span("image", "patches", rows * columns, grid=(rows, columns)))


class GridEmbedding(nn.Module):
    """The last map of any CNN as image tokens: each cell projected to `width`, with a learned position (Pixel-BERT: Huang et
    al. 2020, section 3.2, whose positions are the CNN's alone). `network` that is no Module is frozen and not saved.

    `grid`: rows and columns of the learned positions, resized to each image's own. `first`: a class token with a position of
    its own stands in front, as a ViT's (layers.embed.PatchEmbedding), for models that read the image there.
    """

    def __init__(self, network: Network, features: int, width: int, grid: tuple[int, int], first: bool = False):
        super().__init__()
        self.network, self.grid = network, grid
        self.project = nn.Linear(features, width)
        self.position = nn.Parameter(torch.zeros(*grid, width))
        self.cls = nn.Parameter(torch.zeros(1, 1, width)) if first else None
        for grown in (self.position, self.cls):
            if grown is not None:
                nn.init.trunc_normal_(grown, std=0.02)

    def forward(
        self, image: Image, hidden: Bool[Tensor, "b cells"] | None = None, blank: Float[Tensor, "1 1 d"] | None = None
    ) -> Tokens:
        """Where a cell is `hidden`, `blank` stands in the place of what the network saw there."""
        seen = cells(self.network, image)
        (span,) = seen.layout.spans
        assert span.grid is not None
        tokens = seen.map(self.project)
        if hidden is not None and blank is not None:
            shown = torch.where(hidden[:, :, None], blank, tokens.canvas())
            tokens = Tokens.of(shown, tokens.real, span)
        tokens = tokens.add(self.positions(tokens.real.unflatten(1, span.grid)))
        return tokens if self.cls is None else Tokens.join(class_tokens(self.cls, image), tokens)

    def positions(self, inside: Bool[Tensor, "b rows columns"]) -> Float[Tensor, "b cells d"]:
        """Of every cell of each image's map; `inside` says which hold one."""
        return grid_inside(self.position, inside, resize_bicubic)
