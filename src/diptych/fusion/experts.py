"""Mixture of modality experts: attention is shared by all tokens, what follows it belongs to each modality."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from diptych.layers.attention import SelfAttention
from diptych.layers.feedforward import FeedForward
from diptych.layers.relative import RelativePositions
from diptych.layers.residual import Residual
from diptych.layout import Layout
from diptych.tokens import Pair, Tokens


class Experts(nn.Module):
    """Two networks of one kind: each token goes through its modality's own."""

    def __init__(self, text: nn.Module, image: nn.Module):
        super().__init__()
        self.text, self.image = text, image

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.map_each({"text": self.text, "image": self.image})


class NormedFeedForward(nn.Module):
    """A norm, and the feed-forward network that reads it."""

    def __init__(self, width: int, hidden: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.feedforward = FeedForward(width, hidden)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.feedforward(self.norm(x))


class ExpertBlock(nn.Module):
    """A pre-norm block whose feed-forward networks are experts (VLMo, figure 1).

    There is one for text, one for images and, with `together`, one for the tokens of both after they have met. Attention
    has no bias for keys, as in BEiT. `scale` and `drop`: see Residual.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, together: bool, scale: float | None = None, drop: float = 0.0,
        eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.attention = SelfAttention(width, heads, key_bias=False)
        self.add_attended = Residual(width, scale, drop)
        self.apart = Experts(NormedFeedForward(width, hidden, eps), NormedFeedForward(width, hidden, eps))
        self.together = NormedFeedForward(width, hidden, eps) if together else None
        self.add_fed = Residual(width, scale, drop)

    def forward(self, tokens: Tokens, bias: Float[Tensor, "h n m"] | None = None, together: bool = False) -> Tokens:
        """`together`: the tokens go to the expert of both modalities, where this block has one."""
        tokens = self.add_attended(tokens, self.attention(tokens.map(self.norm), None, bias))
        both = self.together if together else None
        return self.add_fed(tokens, self.apart(tokens) if both is None else tokens.map(both))


class ModalityExperts(nn.Module):
    """Text tokens, then image tokens, through the same expert blocks and a final norm; read at the first text token
    (VLMo, figure 1).
    """

    def __init__(
        self, blocks: nn.ModuleList, norm: nn.Module, pooler: nn.Module, positions: RelativePositions | None = None
    ):
        super().__init__()
        self.blocks, self.norm, self.pooler, self.positions = blocks, norm, pooler, positions

    def forward(self, text: Tokens, image: Tokens) -> Pair:
        both = Tokens.join(text, image)
        for block, bias in zip(self.blocks, self._biases(both.layout), strict=True):
            both = block(both, bias, together=True)
        text, image = both.map(self.norm).split(text.layout, image.layout)
        return Pair(text, image, self.pooler(text.first()))

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through its own experts."""
        for block, bias in zip(self.blocks, self._biases(tokens.layout), strict=True):
            tokens = block(tokens, bias)
        return tokens.map(self.norm)

    def both_ways(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """One modality through its own experts; and, from the first block that has one, through those of both modalities."""
        own, shared = tokens, None
        for block, bias in zip(self.blocks, self._biases(tokens.layout), strict=True):
            if block.together is not None:
                shared = block(own if shared is None else shared, bias, together=True)
            own = block(own, bias)
        return own.map(self.norm), (own if shared is None else shared).map(self.norm)

    def _biases(self, layout: Layout) -> Sequence[Float[Tensor, "h n n"] | None]:
        """What each block adds to its attention scores."""
        return [None] * len(self.blocks) if self.positions is None else self.positions(layout)
