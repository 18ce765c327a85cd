"""Prediction heads, one per pre-training or downstream task, and the learned temperature of cosine similarities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LogScale(nn.Module):
    """A learned scale of cosines, parametrised by its logarithm (CLIP, section 2.5: initialised to 1 / 0.07).

    `maximum`: upper bound of the scale; see `_bounded`.
    """

    def __init__(self, start: float = 1 / 0.07, maximum: float = math.inf):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))
        self.maximum = maximum

    def forward(self) -> Float[Tensor, ""]:
        return _bounded(self.log, (-math.inf, math.log(self.maximum)), self.training).exp()


class Temperature(nn.Module):
    """A learned temperature of cosines (ALBEF: initialised to 0.07); `forward` gives the scale 1 / temperature.

    `bounds`: of the temperature; see `_bounded`.
    """

    def __init__(self, start: float = 0.07, bounds: tuple[float, float] | None = (0.001, 0.5)):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))
        self.bounds = bounds

    def forward(self) -> Float[Tensor, ""]:
        value = self.value if self.bounds is None else _bounded(self.value, self.bounds, self.training)
        return 1 / value


def _bounded(parameter: nn.Parameter, bounds: tuple[float, float], training: bool) -> Tensor:
    """The parameter within `bounds`.

    In training the parameter itself is clamped, as in the official codes, so that its gradient does not vanish at a
    bound. Evaluation does not change it: an imported value out of bounds stays, and its clamped value is used.
    """
    if not training:
        return parameter.clamp(*bounds)
    with torch.no_grad():
        parameter.clamp_(*bounds)
    return parameter


class ITMHead(nn.Module):
    """Image-text matching (ITM) head: two logits per pair, mismatched and matched."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b 2"]:
        return self.linear(pooled)


class MLMTransform(nn.Module):
    """The transform that BERT's heads share: linear, `activation` (GELU), norm; subclasses add the output layer."""

    def __init__(self, dim: int, mlp_dim: int, eps: float, activation: nn.Module | None = None):
        super().__init__()
        self.dense = nn.Linear(dim, mlp_dim)
        self.activation = activation or nn.GELU()
        self.norm = nn.LayerNorm(mlp_dim, eps)

    def transform(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n h"]:
        """The input of the output layer."""
        return self.norm(self.activation(self.dense(x)))


class MLMHead(MLMTransform):
    """BERT's masked language modeling head: linear, GELU, norm, then vocabulary logits.

    The output vectors are the head's own (ViLT) or, with `tied`, the word embeddings (BERT).
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        eps: float = 1e-12,
        tied: nn.Embedding | None = None,
        activation: nn.Module | None = None,
    ):
        super().__init__(dim, dim, eps, activation)
        self.decoder = nn.Linear(dim, vocab_size, bias=False)
        if tied is not None:
            self.decoder.weight = tied.weight
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return self.decoder(self.transform(x)) + self.bias


class RegionHead(MLMTransform):
    """Masked region head, BERT's head on image tokens: linear, GELU, norm, linear (ViLBERT, section 3.2).

    `targets`: output width, the number of detector classes (1,601) or the width of the detector's features.
    """

    def __init__(self, dim: int, targets: int, eps: float = 1e-12):
        super().__init__(dim, dim, eps)
        self.targets = nn.Linear(dim, targets)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n t"]:
        return self.targets(self.transform(x))


class SimpleClassifier(MLMTransform):
    """Answer logits: linear to a hidden width, GELU, norm, linear (ViLBERT's downstream head).

    `inputs`: the width of the concatenated pooled vectors, one per image of a sample.
    """

    def __init__(self, inputs: int, mlp_dim: int, num_answers: int, eps: float = 1e-12):
        super().__init__(inputs, mlp_dim, eps)
        self.answers = nn.Linear(mlp_dim, num_answers)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self.answers(self.transform(pooled))


class ReLUClassifier(nn.Module):
    """Answer logits: linear, ReLU, dropout, linear (the downstream head of ViLBERT's first release).

    Differs: there both layers are weight-normed; loading a checkpoint folds the norm into plain weights.
    """

    def __init__(self, inputs: int, mlp_dim: int, num_answers: int, dropout: float = 0.5):
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(inputs, mlp_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_dim, num_answers)
        )

    @property
    def answers(self) -> nn.Module:
        """The output layer."""
        return self.main[3]

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self.main(pooled)


class PairClassifier(nn.Module):
    """Answer logits: linear to a hidden width, norm, GELU, linear (ViLT's downstream head).

    `inputs`: the width of the concatenated pooled vectors, one per image of a sample.
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
        """Sets the output bias to the logits of the answers' prior probabilities (RetinaNet: Lin et al. 2017, 4.1)."""
        self.answers.bias.copy_(prior.logit())


class MLPClassifier(nn.Module):
    """Answer logits: norm, linear, norm, GELU, linear (BEiT-3's head for NLVR2)."""

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
    """Image-text contrastive (ITC) head: projections to unit vectors of one width, a learned scale (CLIP, figure 3).

    `offset`: learned bias of the logits in the sigmoid loss (SigLIP); None with the softmax loss.
    """

    offset: nn.Parameter | None

    def __init__(self, image_dim: int, text_dim: int, dim: int, scale: LogScale | Temperature, bias: bool = True):
        super().__init__()
        self.image = nn.Linear(image_dim, dim, bias)
        self.text = nn.Linear(text_dim, dim, bias)
        self.scale = scale
        self.register_parameter("offset", None)

    def use_sigmoid(self, factor: float = 10.0, offset: float = -10.0) -> ITCHead:
        """Turns this head into SigLIP's, with its initial scale and bias: most pairs of a batch are mismatched.

        Source: Zhai et al. 2023, section 3.2.
        """
        self.scale, self.offset = LogScale(factor), nn.Parameter(torch.tensor(offset))
        return self

    def project_image(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return F.normalize(self.image(pooled), dim=-1)

    def project_text(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return F.normalize(self.text(pooled), dim=-1)

    def logits(self, cosines: Float[Tensor, "b m"], scale: Float[Tensor, ""]) -> Float[Tensor, "b m"]:
        """Logits for a softmax over candidates or, with an `offset`, for a sigmoid of each pair."""
        return scale * cosines if self.offset is None else scale * cosines + self.offset


class GroundingHead(nn.Module):
    """Grounding head: one logit per token (ViLBERT's referring expressions, section 4.2)."""

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, 1)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        return self.linear(self.dropout(x)).squeeze(-1)


class RankingHead(nn.Module):
    """Ranking head: one score per image-text pair, compared between candidates (ViLT's retrieval)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return self.linear(pooled).squeeze(-1)
