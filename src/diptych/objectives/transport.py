"""Optimal transport between the words of a text and the patches of an image, by IPOT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Transport:
    """What it costs to carry a text's mass onto an image's, and the plan that does. Zero where `real` is not."""

    cost: Float[Tensor, "b n m"]
    plan: Float[Tensor, "b n m"]
    distance: Float[Tensor, " b"]


def transport(
    words: Float[Tensor, "b n d"], patches: Float[Tensor, "b m d"],
    real_words: Bool[Tensor, "b n"], real_patches: Bool[Tensor, "b m"],
    beta: float = 0.5, iterations: int = 50,
) -> Transport:  # fmt: skip
    """Cosine cost, IPOT plan (held constant in the gradient), and distance ⟨cost, plan⟩; float32, outside autocast.

    Source: UNITER (Chen et al. 2020), 3.2 and ViLT, 3.2; official code for the constants.
    """
    with torch.autocast(words.device.type, enabled=False):
        words = F.normalize(words.float(), dim=2, eps=1e-5)
        patches = F.normalize(patches.float(), dim=2, eps=1e-5)
        real = real_words[:, :, None] & real_patches[:, None, :]
        cost = torch.where(real, 1 - words @ patches.transpose(1, 2), 0.0)
        plan = ipot(cost.detach(), real_words, real_patches, beta, iterations)
        return Transport(cost, plan, (cost * plan).sum((1, 2)))


@torch.no_grad()
def ipot(
    cost: Float[Tensor, "b n m"], rows: Bool[Tensor, "b n"], columns: Bool[Tensor, "b m"], beta: float, iterations: int
) -> Float[Tensor, "b n m"]:
    """Inexact proximal point iteration towards the optimal plan between uniform masses (Xie et al. 2020, algorithm 1).

    One Sinkhorn step per proximal step. No early stop: the paper's gradient is that of 50 iterations, converged or not.
    """
    n = rows.sum(1, keepdim=True).float()
    m = columns.sum(1, keepdim=True).float()
    real = rows[:, :, None] & columns[:, None, :]
    kernel = torch.where(real, (-cost / beta).exp(), 0.0)
    plan = real.float()
    sigma = (rows / n)[:, :, None]  # scales the rows
    no_row, no_column = (1e4 * ~rows)[:, :, None], (1e4 * ~columns)[:, None, :]
    work = torch.empty_like(plan)
    for _ in range(iterations):
        torch.mul(kernel, plan, out=work)
        delta = 1 / (m[:, :, None] * (sigma.transpose(1, 2) @ work) + no_column)
        sigma = 1 / (n[:, :, None] * (work @ delta.transpose(1, 2)) + no_row)
        torch.mul(work, sigma, out=plan).mul_(delta)
    return plan
