"""The learned factor of cosines, without which a softmax of them could hardly tell candidates apart.

One small network per question asked of tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LogScale(nn.Module):
    """A learned factor for cosines, kept as its logarithm (CLIP, 2.5: begins at 1 / 0.07). `most` holds it as Temperature's bounds."""

    def __init__(self, start: float = 1 / 0.07, most: float = math.inf):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))
        self.most = most

    def forward(self) -> Float[Tensor, ""]:
        if not self.training:  # only read, the parameter stays as it was imported
            return self.log.exp().clamp(max=self.most)
        self.log.detach().clamp_(max=math.log(self.most))
        return self.log.exp()


class Temperature(nn.Module):
    """A learned divisor of cosines, kept as itself (ALBEF begins at 0.07): gives the factor 1 / temperature.

    `bounds` hold it, as the official codes do, by moving the parameter itself: out of them it stays trainable.
    """

    def __init__(self, start: float = 0.07, bounds: tuple[float, float] | None = (0.001, 0.5)):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))
        self.bounds = bounds

    def forward(self) -> Float[Tensor, ""]:
        if self.bounds is not None:
            with torch.no_grad():
                self.value.clamp_(*self.bounds)
        return 1 / self.value


class ITMHead(nn.Module):
    """Do this text and this image belong together? Two logits: mismatched, matched."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b 2"]:
        return self.linear(pooled)


class MLMTransform(nn.Module):
    """What BERT's heads share: linear to a hidden width, GELU (or another `activation`), norm. What asks stands behind it."""

    def __init__(self, dim: int, mlp_dim: int, eps: float, activation: nn.Module | None = None):
        super().__init__()
        self.dense = nn.Linear(dim, mlp_dim)
        self.activation = activation or nn.GELU()
        self.norm = nn.LayerNorm(mlp_dim, eps)

    def last(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n h"]:
        """What the head's own vectors are multiplied with."""
        return self.norm(self.activation(self.dense(x)))


class MLMHead(MLMTransform):
    """Which word stands here? BERT's masked-word head: linear, GELU, norm, then a logit per word of the vocabulary, whose vectors
    are the head's own (ViLT), or, with `tied`, the word embeddings themselves (BERT).
    """

    def __init__(
        self, dim: int, vocab_size: int, eps: float = 1e-12, tied: nn.Embedding | None = None,
        activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__(dim, dim, eps, activation)
        self.words = nn.Linear(dim, vocab_size, bias=False)
        if tied is not None:
            self.words.weight = tied.weight
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return self.words(self.last(x)) + self.bias


class RegionHead(MLMTransform):
    """What is in this region? BERT's head on image tokens: linear, GELU, norm, linear (ViLBERT, section 3.2).
    `targets`: a logit per class of the detector (1,601), or the detector's feature itself.
    """

    def __init__(self, dim: int, targets: int, eps: float = 1e-12):
        super().__init__(dim, dim, eps)
        self.targets = nn.Linear(dim, targets)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n t"]:
        return self.targets(self.last(x))


class SimpleClassifier(MLMTransform):
    """Which of these answers? Linear to a hidden width, GELU, norm, linear (ViLBERT's downstream head).

    Reads one summary per image: `inputs` is the width of all of them side by side.
    """

    def __init__(self, inputs: int, mlp_dim: int, num_answers: int, eps: float = 1e-12):
        super().__init__(inputs, mlp_dim, eps)
        self.answers = nn.Linear(mlp_dim, num_answers)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self.answers(self.last(pooled))


class ReLUClassifier(nn.Module):
    """Logits of answers: linear, ReLU, dropout, linear (the downstream head of ViLBERT's first release).

    There both layers are weight-normed; a checkpoint's are computed once and stand here as plain weights.
    """

    def __init__(self, inputs: int, mlp_dim: int, num_answers: int, dropout: float = 0.5):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(inputs, mlp_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_dim, num_answers)
        )

    @property
    def answers(self) -> nn.Module:
        """The last layer."""
        return self.main[3]

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self.main(pooled)


class PairClassifier(nn.Module):
    """Which of these answers? Linear to a hidden width, norm, GELU, linear (ViLT's downstream head).

    Reads one summary per image: `inputs` is the width of all of them side by side.
    """

    def __init__(self, inputs: int, mlp_dim: int, num_answers: int, eps: float = 1e-5):
        super().__init__()
        self.dense = nn.Linear(inputs, mlp_dim)
        self.norm = nn.LayerNorm(mlp_dim, eps)
        self.gelu = nn.GELU()
        self.answers = nn.Linear(mlp_dim, num_answers)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self.answers(self.gelu(self.norm(self.dense(pooled))))

    @torch.no_grad()
    def init_prior(self, prior: Float[Tensor, " a"]) -> None:
        """Begins with each answer's probability before anything is read (Lin et al. 2017, RetinaNet, 4.1)."""
        self.answers.bias.copy_(prior.logit())


class MLPClassifier(nn.Module):
    """Which of these answers? Norm, linear, norm, GELU, linear (BEiT-3's head for NLVR2)."""

    def __init__(self, inputs: int, mlp_dim: int, num_answers: int, eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs, eps)
        self.dense1 = nn.Linear(inputs, mlp_dim)
        self.norm2 = nn.LayerNorm(mlp_dim, eps)
        self.gelu = nn.GELU()
        self.dense2 = nn.Linear(mlp_dim, num_answers)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self.dense2(self.gelu(self.norm2(self.dense1(self.norm1(pooled)))))


class ITCHead(nn.Module):
    """Both sides' readouts as unit vectors of one width, whose cosines are scaled by a learned factor (CLIP, figure 3).

    `offset`: a learned number added to what was scaled, where each pair is judged by itself (SigLIP); None: none.
    """

    offset: nn.Parameter | None

    def __init__(self, image_dim: int, text_dim: int, dim: int, scale: LogScale | Temperature, bias: bool = True):
        super().__init__()
        self.image = nn.Linear(image_dim, dim, bias)
        self.text = nn.Linear(text_dim, dim, bias)
        self.scale = scale
        self.register_parameter("offset", None)

    def use_sigmoid(self, factor: float = 10.0, offset: float = -10.0) -> ITCHead:
        """The same head, beginning as SigLIP's (Zhai et al. 2023, section 3.2): most pairs do not belong together."""
        self.scale, self.offset = LogScale(factor), nn.Parameter(torch.tensor(offset))
        return self

    def project_image(self, readout: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return F.normalize(self.image(readout), dim=-1)

    def project_text(self, readout: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return F.normalize(self.text(readout), dim=-1)

    def logits(self, cosines: Float[Tensor, "b m"], scale: Float[Tensor, ""]) -> Float[Tensor, "b m"]:
        """Logits: softmax over candidates tells which belongs; with an `offset`, the sigmoid whether this one does."""
        return scale * cosines if self.offset is None else scale * cosines + self.offset


class GroundingHead(nn.Module):
    """Is it this token? One score for each (ViLBERT's referring expressions, section 4.2)."""

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, 1)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        return self.linear(self.dropout(x)).squeeze(-1)


class RankingHead(nn.Module):
    """How well does this text fit this image? One score, to be compared between candidates (ViLT's retrieval)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return self.linear(pooled).squeeze(-1)
