from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.batch import Batch, Regions, Text
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.models.vsepp.config import VSEppConfig
from diptych.models.vsepp.model import VSEpp
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import TripletLoss, compared, triplet_loss

SIMILARITY = torch.tensor([[0.9, 0.8, 0.1], [0.3, 0.5, 0.6], [0.2, 0.0, 0.7]])


def by_hand(margin: float, hardest: bool) -> float:
    total = 0.0
    n = len(SIMILARITY)
    for i in range(n):
        texts = [max(0.0, margin + SIMILARITY[i, j].item() - SIMILARITY[i, i].item()) for j in range(n) if j != i]
        images = [max(0.0, margin + SIMILARITY[j, i].item() - SIMILARITY[i, i].item()) for j in range(n) if j != i]
        total += max(texts) + max(images) if hardest else sum(texts) + sum(images)
    return total


@pytest.mark.parametrize("hardest", [True, False])
@pytest.mark.parametrize("margin", [0.05, 0.2, 0.5])
def test_the_triplet_loss_sums_over_negatives_in_both_directions(margin: float, hardest: bool):
    assert triplet_loss(SIMILARITY, SIMILARITY.T, margin, hardest).item() == pytest.approx(
        by_hand(margin, hardest), abs=1e-6
    )


@pytest.mark.parametrize("hardest", [True, False])
def test_parts_of_two_ranks_add_up_to_the_whole_batch(hardest: bool):
    """Each rank has its rows, whose matching candidates are in the columns from its first sample on."""
    whole = triplet_loss(SIMILARITY, SIMILARITY.T, 0.2, hardest)
    parts = [
        triplet_loss(SIMILARITY[rows], SIMILARITY.T[rows], 0.2, hardest, first)
        for first, rows in ((0, slice(0, 1)), (1, slice(1, 3)))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_equal_similarities_give_twice_the_margin_with_hardest_negatives():
    alike = torch.zeros(4, 4)
    assert triplet_loss(alike, alike.T, 0.2, True).item() == pytest.approx(4 * 0.4)
    floor = TripletLoss().chance_loss({})
    assert floor is not None and floor.value == pytest.approx(0.4)
    assert TripletLoss(hardest_only=False).chance_loss({}) is None


def test_pairs_beyond_the_margin_give_zero_loss_and_gradient():
    similarity = (torch.eye(3) * 2).requires_grad_()
    loss = triplet_loss(similarity, similarity.T, 0.2, True)
    loss.backward()
    assert loss.item() == 0 and similarity.grad is not None and not similarity.grad.any()


def batch(n: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(n, 1, 6, generator=draw)
    regions = Regions(features, torch.zeros(n, 1, 5), torch.ones(n, 1, dtype=torch.bool))
    text = Text(torch.randint(1, 9, (n, 4), generator=draw), torch.ones(n, 4, dtype=torch.bool))
    return Batch(0, 0, torch.arange(n), regions=regions, text=text)


def test_the_step_averages_over_pairs():
    step = Pretraining(VSEpp(VSEppConfig(6, 8, 9, 4)), nn.ModuleDict(), [TripletLoss(margin=0.3)])
    losses = step(batch(5))
    similarity = compared(step.views(batch(5)))
    torch.testing.assert_close(losses["triplet"], triplet_loss(similarity, similarity.T, 0.3, True) / 5)
    right = (similarity.argmax(1) == torch.arange(5)).float().mean()
    torch.testing.assert_close(losses["triplet/accuracy"], right)


def test_a_model_without_a_similarity_raises_an_error():
    step = Pretraining(ViT(ViTConfig(8, 1, 2, 8, 4, (1, 1), 0)), nn.ModuleDict(), [TripletLoss()])
    with pytest.raises(ValueError, match="ViT defines no similarity"):
        step(batch(2))
