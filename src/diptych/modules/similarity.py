"""How alike two sides are: every image of a batch with every text.

Stacked cross attention: a similarity of two sets of tokens, in which each token of one side attends to the other's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.modules.tokens import Tokens


def unit(x: Float[Tensor, "*n d"], dim: int = -1, eps: float = 1e-8) -> Float[Tensor, "*n d"]:
    """`x` over its length plus `eps` along `dim`, which leaves zero where it is; its gradient there is zero too."""
    return x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + eps)


def cosine(image: Float[Tensor, "i d"], text: Float[Tensor, "t d"]) -> Float[Tensor, "i t"]:
    """Dot products, of unit vectors."""
    return image @ text.T


def order_similarity(image: Float[Tensor, "i d"], text: Float[Tensor, "t d"]) -> Float[Tensor, "i t"]:
    """How far the text is from being more general than the image in every coordinate: -‖max(0, |text| - |image|)‖
    (Vendrov et al. 2016, equation 2). Its gradient where nothing is violated is zero. Differs: the norm is not squared, as in
    VSE++'s official code.
    """
    excess = (text.abs()[None] - image.abs()[:, None]).clamp(min=0)
    return -torch.linalg.vector_norm(excess, dim=2)


Normalise = Callable[[Tensor, Tensor], Tensor]
Aggregate = Callable[[Tensor, Tensor, float], Tensor]


def _clipped(raw: Tensor, real: Tensor) -> Tensor:
    return F.leaky_relu(raw, 0.1)


def _blank(raw: Tensor, real: Tensor) -> Tensor:
    return raw.masked_fill(~real, 0)


NORMS: dict[str, Normalise] = {
    "clipped_l2": lambda raw, real: unit(_clipped(_blank(raw, real), real), 2),
    "l2": lambda raw, real: unit(_blank(raw, real), 2),
    "softmax": lambda raw, real: raw.masked_fill(~real, -torch.inf).softmax(2),
    "clipped": _clipped,
    "none": lambda raw, real: raw,
}
"""How raw likenesses (a, b, asking, asked) are made comparable over the asking tokens, dimension 2."""

AGGREGATES: dict[str, Aggregate] = {
    "logsumexp": lambda x, real, scale: (scale * x).masked_fill(~real, -torch.inf).logsumexp(2) / scale,
    "mean": lambda x, real, scale: _blank(x, real).sum(2) / real.sum(2),
    "max": lambda x, real, scale: x.masked_fill(~real, -torch.inf).amax(2),
    "sum": lambda x, real, scale: _blank(x, real).sum(2),
}
"""From the relevance of each asking token (a, b, asking) to one score."""


@dataclass(frozen=True)
class StackedAttention:
    """Each asking token gathers what it likes of the other side, and is compared with that by cosine; the cosines are
    aggregated to one score (Lee et al. 2018, section 3.1, equations 1 to 10).

    `asking`: "text" (the paper's t-i: words attend to regions) or "image" (i-t). `sharpness` is the paper's λ1 (of the
    softmax), `peak` its λ2 (of LogSumExp). Its own cosine needs no gathered vector of every pair, only its length:
    that is had from the asked tokens' dot products with one another.
    """

    direction: str = "text"
    norm: str = "clipped_l2"
    aggregate: str = "logsumexp"
    lambda_softmax: float = 9.0
    lambda_lse: float = 6.0

    def __post_init__(self) -> None:
        for what, value, known in (
            ("asking", self.direction, ("text", "image")),
            ("norm", self.norm, tuple(NORMS)),
            ("aggregate", self.aggregate, tuple(AGGREGATES)),
        ):
            if value not in known:
                raise ValueError(f"{what} is one of {', '.join(known)}, not {value!r}")

    def __call__(self, text: Tokens, image: Tokens) -> Float[Tensor, "images texts"]:
        """Every image with every text."""
        sides = (text.to_padded().float(), text.mask, image.to_padded().float(), image.mask)
        with torch.autocast(text.values.device.type, enabled=False):  # λ1 multiplies the rounding of likenesses
            if self.direction == "text":
                return self._scores(*sides).T
            return self._scores(*sides[2:], *sides[:2])

    def _scores(
        self, asking: Float[Tensor, "a q d"], asking_real: Bool[Tensor, "a q"],
        asked: Float[Tensor, "b s d"], asked_real: Bool[Tensor, "b s"],
    ) -> Float[Tensor, "a b"]:  # fmt: skip
        raw = torch.einsum("aqd,bsd->abqs", asking, asked)
        likeness = NORMS[self.norm](raw, asking_real[:, None, :, None])
        likeness = (self.lambda_softmax * likeness).masked_fill(~asked_real[:, None, :], -torch.inf)
        share = likeness.softmax(3)
        gathered = ((share @ (asked @ asked.mT)) * share).sum(3).clamp(min=1e-16).sqrt()
        lengths = torch.linalg.vector_norm(asking, dim=2)[:, None] * gathered
        relevance = (share * raw).sum(3) / lengths.clamp(min=1e-8)
        return AGGREGATES[self.aggregate](relevance, asking_real[:, None], self.lambda_lse)
