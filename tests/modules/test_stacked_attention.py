"""Stacked cross attention against its definition, one pair at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.modules.similarity import AGGREGATES, NORMS, StackedAttention, cosine, order_similarity, unit
from diptych.modules.tokens import Span, Tokens, packing

WORDS, REGIONS = [3, 1, 5], [4, 2, 6, 1]


def side(lengths: list[int], modality: str, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths), 8, generator=draw)
    return values, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def tokens(lengths: list[int], modality: str, seed: int, pads: float = 0.0) -> Tokens:
    values, real = side(lengths, modality, seed)
    values = torch.where(real[:, :, None], values, pads)
    return Tokens.from_padded(values, real, Span(modality, "any", values.shape[1]))


def score(asking: Tensor, asked: Tensor, how: StackedAttention) -> Tensor:
    """Of one pair, (q, d) and (s, d), as the paper writes it."""
    raw = asked @ asking.T  # (s, q)
    if how.norm == "softmax":
        raw = raw.softmax(1)
    if how.norm.startswith("clipped"):
        raw = F.leaky_relu(raw, 0.1)
    if how.norm.endswith("l2"):
        raw = raw / (raw.norm(dim=1, keepdim=True) + 1e-8)
    gathered = (how.lambda_softmax * raw).softmax(0).T @ asked  # (q, d)
    relevance = F.cosine_similarity(asking, gathered, dim=1)
    if how.aggregate == "logsumexp":
        return (how.lambda_lse * relevance).exp().sum().log() / how.lambda_lse
    return {"mean": relevance.mean(), "max": relevance.max(), "sum": relevance.sum()}[how.aggregate]


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("asking", ["text", "image"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_pair_by_its_definition(asking: str, norm: str, aggregate: str, packed: bool):
    how = StackedAttention(asking, norm, aggregate, lambda_softmax=4.0, lambda_lse=5.0)
    with packing(packed):
        found = how(tokens(WORDS, "text", 1, pads=7.0), tokens(REGIONS, "image", 2, pads=-9.0))
    words, regions = side(WORDS, "text", 1)[0], side(REGIONS, "image", 2)[0]
    for i, n in enumerate(REGIONS):
        for t, m in enumerate(WORDS):
            image, text = regions[i, :n], words[t, :m]
            expected = score(text, image, how) if asking == "text" else score(image, text, how)
            torch.testing.assert_close(found[i, t], expected, rtol=1e-5, atol=1e-5)


def test_a_token_that_gathers_nothing_has_no_likeness_and_finite_gradients():
    text, image = tokens([2], "text", 1), tokens([3], "image", 2)
    image = image.map(lambda x: (0 * x).requires_grad_())
    found = StackedAttention()(text, image)
    found.sum().backward()
    assert image.values.grad is not None and image.values.grad.isfinite().all()
    torch.testing.assert_close(found, torch.tensor([[2.0]]).log() / 6)


@pytest.mark.parametrize("wrong", [{"direction": "both"}, {"norm": "l1"}, {"aggregate": "median"}])
def test_what_is_not_known_is_named(wrong: dict[str, str]):
    with pytest.raises(ValueError, match=f"is one of .*, not '{next(iter(wrong.values()))}'"):
        StackedAttention(**wrong)  # type: ignore[arg-type]


def test_order_counts_only_what_the_text_has_more_of():
    image, text = torch.tensor([[1.0, -2.0]]), torch.tensor([[-1.0, 1.0], [4.0, 6.0]])
    assert order_similarity(image, text).tolist() == [[0.0, -5.0]]
    assert cosine(image, text).tolist() == [[-3.0, -8.0]]


def test_nought_stays_nought_and_its_gradients_are_finite():
    x = torch.zeros(2, 3, requires_grad=True)
    (unit(x).sum() + order_similarity(x, x).sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all() and not unit(x).any()
