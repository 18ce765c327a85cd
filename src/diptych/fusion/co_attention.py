"""Two streams that look at each other (Lu et al., ViLBERT, NeurIPS 2019, figure 2b)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from diptych.layers.attention import CrossAttention
from diptych.layers.feedforward import FeedForward
from diptych.tokens import Pair, Tokens


class CrossBlock(nn.Module):
    """One half of a co-attention: attention to the other stream, then a feed-forward network, each added and normalised.

    `inner`: the width that all attention heads have together.
    """

    def __init__(
        self, width: int, context_width: int, heads: int, inner: int, hidden: int, eps: float = 1e-12, dropout: float = 0.0
    ):  # fmt: skip
        super().__init__()
        self.attention = CrossAttention(width, heads, context_width, inner)
        self.norm1 = nn.LayerNorm(width, eps)
        self.feedforward = FeedForward(width, hidden)
        self.norm2 = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        tokens = (tokens + self.attention(tokens, context).map(self.dropout)).map(self.norm1)
        return (tokens + tokens.map(self.feedforward).map(self.dropout)).map(self.norm2)


class Meeting(nn.Module):
    """A co-attentional layer: each stream attends to what the other was before it (figure 2b)."""

    def __init__(self, text: CrossBlock, image: CrossBlock):
        super().__init__()
        self.text, self.image = text, image

    def forward(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        return self.text(text, image), self.image(image, text)


class CoAttention(nn.Module):
    """A stream of blocks for each modality, which meet on the way; the pooler reads both first tokens.

    `schedule`: for each meeting, how many text blocks and how many image blocks come before it. What is left of either
    stream runs behind the last one. Raises ValueError where the schedule runs backwards or past the streams' ends.
    """

    def __init__(
        self,
        text: nn.ModuleList,
        image: nn.ModuleList,
        meetings: nn.ModuleList,
        schedule: Sequence[tuple[int, int]],
        pooler: nn.Module,
    ):
        super().__init__()
        stops = [(0, 0), *schedule, (len(text), len(image))]
        if len(meetings) != len(schedule) or any(a[0] > b[0] or a[1] > b[1] for a, b in pairwise(stops)):
            raise ValueError(
                f"{len(meetings)} meetings of {len(text)} and {len(image)} blocks cannot run as {schedule}"
            )
        self.text, self.image, self.meetings, self.pooler = text, image, meetings, pooler
        self.schedule = tuple(schedule)

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through its own blocks, without meeting the other."""
        blocks = self.text if tokens.layout.spans[0].modality == "text" else self.image
        for block in blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, text: Tokens, image: Tokens) -> Pair:
        texts, images = iter(self.text), iter(self.image)
        before = (0, 0)
        for meeting, stop in zip(self.meetings, self.schedule, strict=True):
            for _ in range(stop[0] - before[0]):
                text = next(texts)(text)
            for _ in range(stop[1] - before[1]):
                image = next(images)(image)
            text, image = meeting(text, image)
            before = stop
        for block in texts:
            text = block(text)
        for block in images:
            image = block(image)
        return Pair(text, image, self.pooler(text.first(), image.first()))
