"""A vocabulary's losses, some rows at a time: those of all scores at once, and their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.heads import Vocabulary
from diptych.objectives import words
from diptych.objectives.words import word_losses

WIDTH, WORDS, ROWS = 6, 11, 7


def head(kind: str) -> Vocabulary | nn.Linear:
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Linear(WIDTH, WORDS, bias=False)
    made = Vocabulary(WIDTH, WORDS, tied=nn.Embedding(WORDS, WIDTH) if kind == "tied" else None)
    nn.init.normal_(made.bias)
    return made


def gradients(module: nn.Module, rows: Tensor) -> list[Tensor]:
    found = [p.grad for p in (*module.parameters(), rows)]
    assert all(g is not None for g in found)
    return [g.clone() for g in found if g is not None]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["linear", "own", "tied"])
def test_they_are_cross_entropies_and_learn_as_those_do(kind: str, smoothing: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "AT_ONCE", 3)  # the last rows are fewer
    module, draws = head(kind).double(), torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=draws, dtype=torch.double).requires_grad_()
    asked = torch.randint(WORDS, (ROWS,), generator=draws)
    loss, right = word_losses(module, rows, asked, smoothing)
    (3 * loss).backward()
    mine = gradients(module, rows)
    module.zero_grad()
    rows.grad = None
    scores = module(rows)
    whole = F.cross_entropy(scores, asked, reduction="sum", label_smoothing=smoothing)
    (3 * whole).backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    assert right.item() == (scores.argmax(1) == asked).sum().item()
    for a, b in zip(mine, gradients(module, rows), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_no_gradient_is_made_where_none_is_asked_for():
    module, rows = head("own"), torch.randn(ROWS, WIDTH)
    with torch.no_grad():
        loss, _ = word_losses(module, rows, torch.zeros(ROWS, dtype=torch.long))
    assert not loss.requires_grad


def test_no_rows_cost_nothing_and_teach_nothing():
    module, rows = head("linear"), torch.zeros(0, WIDTH, requires_grad=True)
    loss, right = word_losses(module, rows, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and right.item() == 0 and rows.grad is not None
    assert all((p.grad == 0).all() for p in module.parameters() if p.grad is not None)


def test_in_half_precision_scores_are_half_and_losses_whole():
    module, rows, asked = head("own"), torch.randn(ROWS, WIDTH, requires_grad=True), torch.arange(ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = word_losses(module, rows, asked)
        whole = F.cross_entropy(module(rows).float(), asked, reduction="sum")
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(whole.item(), rel=1e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
