"""From what a detector saw to vectors."""

from __future__ import annotations

from torch import nn

from diptych.inputs import Regions
from diptych.layout import Span
from diptych.tokens import Tokens


class RegionEmbedding(nn.Module):
    """What a detector saw: each region's feature and its box, projected linearly, summed and normalised (ViLBERT, 3.2).

    `features`: the width of the detector's features.
    """

    def __init__(self, features: int, width: int, eps: float = 1e-12, dropout: float = 0.0):
        super().__init__()
        self.feature = nn.Linear(features, width)
        self.box = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Regions) -> Tokens:
        values = self.dropout(self.norm(self.feature(regions.features) + self.box(regions.boxes)))
        return Tokens.of(values, regions.real, *region_spans(regions))


class PlacelessRegionEmbedding(nn.Module):
    """What a detector saw, but not where: projected linearly, told from words by one vector, and normalised (VisualBERT).

    `norm`: the words' own, which serves both.
    """

    def __init__(self, features: int, width: int, norm: nn.LayerNorm, dropout: float = 0.0):
        super().__init__()
        self.feature = nn.Linear(features, width)
        self.kind = nn.Embedding(1, width)
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Regions) -> Tokens:
        values = self.dropout(self.norm(self.feature(regions.features) + self.kind.weight[0]))
        return Tokens.of(values, regions.real, *region_spans(regions))


def region_spans(regions: Regions) -> tuple[Span, ...]:
    """The meaning of a batch of regions' columns: the whole image in front stands where others have a class token."""
    n = regions.real.shape[1]
    whole = (Span("image", "cls", 1), Span("image", "regions", n - 1))
    return whole if regions.whole else (Span("image", "regions", n),)
