"""Word-patch alignment: IPOT compared with exact optimal transport; padding has no mass."""

from __future__ import annotations

from functools import cache

import ot
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.modules.tokens import FusedTokens, Span, Tokens, packing
from diptych.objectives.wpa import WPALoss, cosines, ipot, optimal_transport

LENGTHS = [(6, 20), (12, 35), (3, 9), (1, 5), (8, 1), (10, 30)]  # words, patches
N, M = 14, 38


def real_cells() -> tuple[Tensor, Tensor]:
    words, patches = torch.tensor(LENGTHS).T
    return torch.arange(N) < words[:, None], torch.arange(M) < patches[:, None]


def random_cost() -> Tensor:
    """1 − cosine of random vectors in a few dimensions: anything from 0 to 2."""
    generator = torch.Generator().manual_seed(0)
    words, patches = (torch.randn(len(LENGTHS), n, 4, generator=generator) for n in (N, M))
    rows, columns = real_cells()
    return (1 - cosines(words, patches)) * rows[:, :, None] * columns[:, None, :]


@cache
def exact() -> list[float]:
    """The cost of the optimal plan between uniform masses, by linear programming."""
    costs = [cost[:n, :m].double().numpy() for cost, (n, m) in zip(random_cost(), LENGTHS, strict=True)]
    return [float((ot.emd(ot.unif(len(c)), ot.unif(c.shape[1]), c) * c).sum()) for c in costs]


def distances(iterations: int) -> tuple[Tensor, Tensor]:
    cost = random_cost()
    plan = ipot(cost, *real_cells(), 0.5, iterations)
    return (cost * plan).sum((1, 2)), plan


def test_fifty_iterations_come_close_to_the_exact_distance():
    """IPOT's masses are only nearly uniform, so the distance may be slightly smaller too."""
    for got, wanted in zip(distances(50)[0].tolist(), exact(), strict=True):
        assert got == pytest.approx(wanted, rel=0.005)


def test_more_iterations_tend_to_the_exact_distance():
    errors = []
    for iterations in (10, 50, 250, 1250):
        got, wanted = distances(iterations)[0], torch.tensor(exact())
        errors.append(((got - wanted).abs() / wanted).max().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


def test_masses_are_uniform_over_real_tokens():
    _, plan = distances(50)
    for cells, (n, m) in zip(plan, LENGTHS, strict=True):
        assert cells.min() >= 0
        torch.testing.assert_close(cells.sum(1)[:n], torch.full((n,), 1 / n), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(cells.sum(0)[:m], torch.full((m,), 1 / m), rtol=0.15, atol=1e-6)
        assert cells[n:].abs().sum() == 0 and cells[:, m:].abs().sum() == 0


def test_identical_costs_give_the_independent_plan():
    plan = ipot(torch.ones(1, 3, 4), torch.ones(1, 3).bool(), torch.ones(1, 4).bool(), 0.5, 50)
    torch.testing.assert_close(plan, torch.full((1, 3, 4), 1 / 12))


def test_the_plan_of_a_permutation_is_the_permutation():
    cost = 1 - torch.eye(5)[torch.tensor([3, 1, 4, 0, 2])][None]
    plan = ipot(cost, torch.ones(1, 5).bool(), torch.ones(1, 5).bool(), 0.5, 50)
    torch.testing.assert_close(plan, (1 - cost) / 5, rtol=1e-4, atol=1e-5)


def words_and_patches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    words, patches = (torch.randn(len(LENGTHS), n, 16, generator=generator) for n in (N, M))
    return words.requires_grad_(), patches.requires_grad_()


def test_the_plan_is_constant_in_the_gradient():
    words, patches = words_and_patches()
    moved = optimal_transport(words, patches, *real_cells())
    assert not moved.plan.requires_grad
    got = torch.autograd.grad(moved.distance.sum(), (words, patches))
    unit = F.normalize(words, dim=2), F.normalize(patches, dim=2)
    wanted = torch.autograd.grad(((1 - unit[0] @ unit[1].mT) * moved.plan).sum(), (words, patches))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_padding_neither_counts_nor_gets_gradients():
    words, patches = words_and_patches()
    rows, columns = real_cells()
    before = optimal_transport(words, patches, rows, columns)
    grads = torch.autograd.grad(before.distance.sum(), (words, patches))
    assert grads[0][~rows].abs().sum() == 0 and grads[1][~columns].abs().sum() == 0
    after = optimal_transport(
        torch.where(rows[:, :, None], words, 50.0), torch.where(columns[:, :, None], patches, -7.0), rows, columns
    )
    assert torch.equal(after.distance, before.distance)
    assert (before.cost == 0)[~(rows[:, :, None] & columns[:, None, :])].all()
    wider = optimal_transport(F.pad(words, (0, 0, 0, 3)), patches, F.pad(rows, (0, 3)), columns)
    torch.testing.assert_close(wider.distance, before.distance)


def test_transport_is_computed_in_float32_under_autocast():
    words, patches = (x.detach().bfloat16() for x in words_and_patches())
    plain = optimal_transport(words.float(), patches.float(), *real_cells())
    with torch.autocast("cpu", torch.bfloat16):
        inside = optimal_transport(words, patches, *real_cells())
    assert inside.distance.dtype == inside.plan.dtype == torch.float32
    assert torch.equal(inside.distance, plain.distance)


def test_a_text_without_words_has_zero_distance():
    words, patches = words_and_patches()
    rows, columns = real_cells()
    rows = rows & (torch.arange(len(rows)) != 1)[:, None]
    moved = optimal_transport(words, patches, rows, columns)
    assert moved.distance[1] == 0 and torch.isfinite(moved.distance).all()
    moved.distance.sum().backward()
    assert words.grad is not None and torch.isfinite(words.grad).all()


@pytest.mark.parametrize("packed", [False, True])
def test_class_tokens_and_the_end_token_have_no_mass(packed: bool):
    """Texts [CLS] a b [SEP] and [CLS] a [SEP]: words a and b; their [SEP] is at the last column, and before it."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    with packing(packed):
        text = Tokens.from_padded(
            torch.randn(2, 4, 5, generator=draw), mask, Span("text", "cls", 1), Span("text", "words", 3)
        )
        patches = torch.ones(2, 4, dtype=torch.bool)
        image = Tokens.from_padded(
            torch.randn(2, 4, 5, generator=draw), patches, Span("image", "cls", 1), Span("image", "patches", 3)
        )
        transport = WPALoss().transport(FusedTokens(text, image, text.first()))
    assert transport.plan.shape == (2, 3, 3)
    assert (transport.plan.sum(2) > 0).tolist() == [[True, True, False], [True, False, False]]
    torch.testing.assert_close(transport.plan.sum((1, 2)), torch.ones(2), rtol=1e-2, atol=0)


def test_zero_vectors_give_no_nan():
    words, patches = words_and_patches()
    blank = words.detach().clone()
    blank[0, 0] = 0
    blank.requires_grad_()
    moved = optimal_transport(blank, patches, *real_cells())
    assert torch.equal(moved.cost[0, 0, :20], torch.ones(20))
    moved.distance.sum().backward()
    assert blank.grad is not None and torch.isfinite(blank.grad).all()
