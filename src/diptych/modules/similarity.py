"""Similarity of every image of a batch with every text: cosine, order similarity, stacked cross attention (SCAN)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.modules.tokens import Tokens


def unit(x: Float[Tensor, "*n d"], dim: int = -1, eps: float = 1e-8) -> Float[Tensor, "*n d"]:
    """`x` divided by its norm plus `eps` along `dim`. Zero vectors stay zero, with zero gradient."""
    return x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + eps)


def cosine(image: Float[Tensor, "i d"], text: Float[Tensor, "t d"]) -> Float[Tensor, "i t"]:
    """Cosine similarity of unit vectors: their dot products."""
    return image @ text.T


def order_similarity(image: Float[Tensor, "i d"], text: Float[Tensor, "t d"]) -> Float[Tensor, "i t"]:
    """Negative order violation, -‖max(0, |text| - |image|)‖: zero if the text is more general in every coordinate.

    The gradient is zero if there is no violation.
    Source: Vendrov et al. 2016, equation 2. Differs: the norm is not squared, as in VSE++'s official code.
    """
    excess = (text.abs()[None] - image.abs()[:, None]).clamp(min=0)
    return -torch.linalg.vector_norm(excess, dim=2)


Normalise = Callable[[Tensor, Tensor], Tensor]
Aggregate = Callable[[Tensor, Tensor, float], Tensor]


def _clipped(scores: Tensor, mask: Tensor) -> Tensor:
    return F.leaky_relu(scores, 0.1)


def _zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0)


NORMS: dict[str, Normalise] = {
    "clipped_l2": lambda scores, mask: unit(_clipped(_zero_padding(scores, mask), mask), 2),
    "l2": lambda scores, mask: unit(_zero_padding(scores, mask), 2),
    "softmax": lambda scores, mask: scores.masked_fill(~mask, -torch.inf).softmax(2),
    "clipped": _clipped,
    "none": lambda scores, mask: scores,
}
"""Normalisations of dot products (a, b, query, key) over the query tokens, dimension 2."""

AGGREGATES: dict[str, Aggregate] = {
    "logsumexp": lambda x, mask, scale: (scale * x).masked_fill(~mask, -torch.inf).logsumexp(2) / scale,
    "mean": lambda x, mask, scale: _zero_padding(x, mask).sum(2) / mask.sum(2),
    "max": lambda x, mask, scale: x.masked_fill(~mask, -torch.inf).amax(2),
    "sum": lambda x, mask, scale: _zero_padding(x, mask).sum(2),
}
"""Aggregations of the relevance of each query token (a, b, query) into one score (a, b)."""


@dataclass(frozen=True)
class StackedAttention:
    """Stacked cross attention (SCAN: Lee et al. 2018, section 3.1, equations 1 to 10).

    Each query token attends to the other modality's tokens; its relevance is its cosine with the attended vector, and
    the relevances are aggregated into one score per image and text.

    Args:
        direction: the modality of the queries, "text" (the paper's t-i: words attend to regions) or "image" (i-t).
        norm, aggregate: names in `NORMS` and `AGGREGATES`.
        lambda_softmax: the paper's λ1, the inverse temperature of the attention.
        lambda_lse: the paper's λ2, of LogSumExp.

    The cosine needs only the length of each pair's attended vector, not the vector: the length follows from the dot
    products of the key tokens with one another.
    """

    direction: str = "text"
    norm: str = "clipped_l2"
    aggregate: str = "logsumexp"
    lambda_softmax: float = 9.0
    lambda_lse: float = 6.0

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("direction", self.direction, ("text", "image")),
            ("norm", self.norm, tuple(NORMS)),
            ("aggregate", self.aggregate, tuple(AGGREGATES)),
        ):
            if value not in choices:
                raise ValueError(f"{option} must be one of {', '.join(choices)}, got {value!r}")

    def __call__(self, image: Tokens, text: Tokens) -> Float[Tensor, "images texts"]:
        """The score of every image with every text."""
        sides = (text.to_padded().float(), text.mask, image.to_padded().float(), image.mask)
        with torch.autocast(text.values.device.type, enabled=False):  # λ1 would multiply rounding errors
            if self.direction == "text":
                return self._scores(*sides).T
            return self._scores(*sides[2:], *sides[:2])

    def _scores(
        self,
        query: Float[Tensor, "a q d"],
        query_mask: Bool[Tensor, "a q"],
        key: Float[Tensor, "b k d"],
        key_mask: Bool[Tensor, "b k"],
    ) -> Float[Tensor, "a b"]:
        products = torch.einsum("aqd,bkd->abqk", query, key)
        scores = NORMS[self.norm](products, query_mask[:, None, :, None])
        scores = (self.lambda_softmax * scores).masked_fill(~key_mask[:, None, :], -torch.inf)
        attention = scores.softmax(3)
        attended_norm = ((attention @ (key @ key.mT)) * attention).sum(3).clamp(min=1e-16).sqrt()
        norms = torch.linalg.vector_norm(query, dim=2)[:, None] * attended_norm
        relevance = (attention * products).sum(3) / norms.clamp(min=1e-8)
        return AGGREGATES[self.aggregate](relevance, query_mask[:, None], self.lambda_lse)
