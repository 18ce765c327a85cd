"""The chunked cross entropy over a vocabulary equals the plain one, with gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diptych.modules.heads import MLMHead
from diptych.objectives import cross_entropy as words
from diptych.objectives.cross_entropy import chunked_cross_entropy

WIDTH, WORDS, ROWS = 6, 11, 7


def head(kind: str) -> MLMHead | nn.Linear:
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Linear(WIDTH, WORDS, bias=False)
    made = MLMHead(WIDTH, WORDS, tied=nn.Embedding(WORDS, WIDTH) if kind == "tied" else None)
    nn.init.normal_(made.bias)
    return made


def gradients(module: nn.Module, rows: Tensor) -> list[Tensor]:
    grads = [p.grad for p in (*module.parameters(), rows)]
    assert all(g is not None for g in grads)
    return [g.clone() for g in grads if g is not None]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["linear", "own", "tied"])
def test_losses_and_gradients_equal_the_unchunked_cross_entropy(
    kind: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(words, "CHUNK_SIZE", 3)  # the last rows are fewer
    module, draws = head(kind).double(), torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=draws, dtype=torch.double).requires_grad_()
    targets = torch.randint(WORDS, (ROWS,), generator=draws)
    loss, right = chunked_cross_entropy(module, rows, targets, smoothing)
    (3 * loss).backward()
    ours = gradients(module, rows)
    module.zero_grad()
    rows.grad = None
    scores = module(rows)
    whole = F.cross_entropy(scores, targets, reduction="sum", label_smoothing=smoothing)
    (3 * whole).backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    assert right.item() == (scores.argmax(1) == targets).sum().item()
    for a, b in zip(ours, gradients(module, rows), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def products(learn: tuple[bool, bool], grad: bool = True) -> int:
    """A head, rows and target words; parts of them may be frozen."""
    module, rows = nn.Linear(WIDTH, WORDS), torch.randn(ROWS, WIDTH, requires_grad=learn[0])
    module.weight.requires_grad_(learn[1])
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counted:
        chunked_cross_entropy(module, rows, torch.zeros(ROWS, dtype=torch.long))
    return counted.get_total_flops()


def test_only_required_gradients_are_computed():
    once = 2 * ROWS * WIDTH * WORDS
    assert products((True, True)) == 3 * once
    assert products((True, False)) == products((False, True)) == 2 * once
    assert products((False, False)) == products((True, True), grad=False) == once


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_part_of_the_head_gets_no_gradient(frozen: str):
    module, rows = nn.Linear(WIDTH, WORDS), torch.randn(ROWS, WIDTH, requires_grad=True)
    getattr(module, frozen).requires_grad_(False)
    chunked_cross_entropy(module, rows, torch.arange(ROWS))[0].backward()
    assert {name for name, p in module.named_parameters() if p.grad is None} == {frozen}


def test_without_rows_loss_and_gradients_are_zero():
    module, rows = head("linear"), torch.zeros(0, WIDTH, requires_grad=True)
    loss, right = chunked_cross_entropy(module, rows, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and right.item() == 0 and rows.grad is not None
    assert all(p.grad is not None and (p.grad == 0).all() for p in module.parameters())


def test_under_autocast_products_are_in_half_precision_and_sums_in_float32():
    module, rows, targets = head("own"), torch.randn(ROWS, WIDTH, requires_grad=True), torch.arange(ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = chunked_cross_entropy(module, rows, targets)
        loss.backward()
        ours = gradients(module, rows)
        module.zero_grad()
        rows.grad = None
        whole = F.cross_entropy(module(rows).float(), targets, reduction="sum")
    whole.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(whole.item(), rel=1e-6)
    exact = chunked_cross_entropy(module, rows, targets)[0].item()
    assert loss.item() != pytest.approx(exact, rel=1e-6)  # otherwise low precision had no effect and nothing was tested
    for a, b in zip(ours, gradients(module, rows), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)
