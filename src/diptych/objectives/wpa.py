"""Word-patch alignment (WPA): optimal transport between words and patches, by IPOT (UNITER, ViLT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.config.objectives import WPA
from diptych.modules.tokens import FusedTokens
from diptych.objectives.definition import Definition, Needs
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, FusionEncoder, PatchEncoder


@dataclass(frozen=True)
class TransportPlan:
    """Cost, transport plan and distance between words and patches. Zero at padding."""

    cost: Float[Tensor, "b n m"]
    plan: Float[Tensor, "b n m"]
    distance: Float[Tensor, " b"]


def optimal_transport(
    words: Float[Tensor, "b n d"],
    patches: Float[Tensor, "b m d"],
    word_mask: Bool[Tensor, "b n"],
    patch_mask: Bool[Tensor, "b m"],
    beta: float = 0.5,
    iterations: int = 50,
) -> TransportPlan:
    """Cosine cost, IPOT plan (detached), and distance ⟨cost, plan⟩; in float32, outside autocast.

    Source: UNITER (Chen et al. 2020), 3.2 and ViLT, 3.2; official code for the constants.
    """
    with torch.autocast(words.device.type, enabled=False):
        mask = word_mask[:, :, None] & patch_mask[:, None, :]
        cost = torch.where(mask, 1 - cosines(words.float(), patches.float()), 0.0)
        plan = ipot(cost.detach(), word_mask, patch_mask, beta, iterations)
        return TransportPlan(cost, plan, (cost * plan).sum((1, 2)))


def cosines(
    words: Float[Tensor, "b n d"], patches: Float[Tensor, "b m d"], eps: float = 1e-5
) -> Float[Tensor, "b n m"]:
    """Cosine similarity. Divides dot products by norms, not vectors: half the time, with gradients."""
    lengths = words.norm(dim=2).clamp(min=eps)[:, :, None] * patches.norm(dim=2).clamp(min=eps)[:, None, :]
    return words @ patches.mT / lengths


@torch.no_grad()
def ipot(
    cost: Float[Tensor, "b n m"], rows: Bool[Tensor, "b n"], columns: Bool[Tensor, "b m"], beta: float, iterations: int
) -> Float[Tensor, "b n m"]:
    """Inexact proximal point iteration towards the optimal plan between uniform masses (Xie et al. 2020, algorithm 1).

    One Sinkhorn step per proximal step. No early stop: the paper's gradient is that of 50 iterations, converged or not.
    """
    mask = rows[:, :, None] & columns[:, None, :]
    kernel = torch.where(mask, (-cost / beta).exp(), 0.0)
    n, m = rows.sum(1).float()[:, None, None], columns.sum(1).float()[:, None, None]
    no_row, no_column = 1e4 * ~rows[:, :, None], 1e4 * ~columns[:, None, :]
    plan = mask.float()
    sigma = rows[:, :, None] / n  # scales the rows
    delta = torch.empty_like(plan[:, :1])  # scales the columns
    for _ in range(iterations):  # in place, which saves a third of the time
        plan.mul_(kernel)
        torch.bmm(sigma.mT, plan, out=delta).mul_(m).add_(no_column).reciprocal_()
        torch.bmm(plan, delta.mT, out=sigma).mul_(n).add_(no_row).reciprocal_()
        plan.mul_(sigma).mul_(delta)
    return plan.masked_fill_(~mask, 0.0)  # also if a sample has no word or no patch at all: 0 / 0 above


@dataclass(frozen=True)
class WPALoss:
    """The transport distance of matched pairs minus that of mismatched ones, averaged over pairs (ViLT, 3.2).

    Class tokens and [SEP] have no mass. Shares the forward pass of ITM. Differs: as in the official code, and unlike in
    the paper's text, the distance of mismatched pairs is maximised.
    """

    name: str = "wpa"
    weight: float = 0.1
    beta: float = 0.5
    iterations: int = 50

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        matched = views.matching.matched
        return {
            self.name: torch.tensor(float(len(matched)), device=matched.device),
            f"{self.name}/matched": matched.sum().float(),
            f"{self.name}/mismatched": (~matched).sum().float(),
        }

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        distance = self.transport(views.matching_pair).distance
        matched = views.matching.matched
        matched_sum, mismatched_sum = distance[matched].sum(), distance[~matched].sum()
        return {
            self.name: matched_sum - mismatched_sum,
            f"{self.name}/matched": matched_sum.detach(),
            f"{self.name}/mismatched": mismatched_sum.detach(),
        }

    def transport(self, pair: FusedTokens) -> TransportPlan:
        """The plan between words (without [CLS] and [SEP]) and patches (without the class token).

        Rows are the text's columns after [CLS], columns the image's after its class token.
        """
        words, patches = pair.text.select(name="words"), pair.image.select(name="patches")
        inner = words.mask & words.mask.roll(-1, 1)  # the last mask word is [SEP]; so is a full row's, below
        inner[:, -1] = False
        return optimal_transport(
            words.to_padded(), patches.to_padded(), inner, patches.mask, self.beta, self.iterations
        )

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """None: the only trivial value of a difference of distances is zero, its initial value."""
        return None


DEFINITION = Definition(
    WPA,
    needs=lambda _: Needs((FusionEncoder, PatchEncoder), mismatched_pairs=True, patch_grid=True, equal_dims=True),
    losses=lambda wpa, _: [WPALoss(weight=wpa.weight)],
)
