"""Stacked cross attention against its definition, one pair at a time; cosine and order similarity."""

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
    values, mask = side(lengths, modality, seed)
    values = torch.where(mask[:, :, None], values, pads)
    return Tokens.from_padded(values, mask, Span(modality, "any", values.shape[1]))


def score(query: Tensor, key: Tensor, attention: StackedAttention) -> Tensor:
    """The score of one pair, queries (q, d) and keys (k, d), as in the paper."""
    weights = key @ query.T  # (k, q)
    if attention.norm == "softmax":
        weights = weights.softmax(1)
    if attention.norm.startswith("clipped"):
        weights = F.leaky_relu(weights, 0.1)
    if attention.norm.endswith("l2"):
        weights = weights / (weights.norm(dim=1, keepdim=True) + 1e-8)
    attended = (attention.lambda_softmax * weights).softmax(0).T @ key  # (q, d)
    relevance = F.cosine_similarity(query, attended, dim=1)
    if attention.aggregate == "logsumexp":
        return (attention.lambda_lse * relevance).exp().sum().log() / attention.lambda_lse
    return {"mean": relevance.mean(), "max": relevance.max(), "sum": relevance.sum()}[attention.aggregate]


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("direction", ["text", "image"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_pair_equals_the_definition(direction: str, norm: str, aggregate: str, packed: bool):
    attention = StackedAttention(direction, norm, aggregate, lambda_softmax=4.0, lambda_lse=5.0)
    with packing(packed):
        scores = attention(tokens(REGIONS, "image", 2, pads=-9.0), tokens(WORDS, "text", 1, pads=7.0))
    words, regions = side(WORDS, "text", 1)[0], side(REGIONS, "image", 2)[0]
    for i, n in enumerate(REGIONS):
        for t, m in enumerate(WORDS):
            image, text = regions[i, :n], words[t, :m]
            expected = score(text, image, attention) if direction == "text" else score(image, text, attention)
            torch.testing.assert_close(scores[i, t], expected, rtol=1e-5, atol=1e-5)


def test_zero_vectors_have_zero_similarity_and_finite_gradients():
    text, image = tokens([2], "text", 1), tokens([3], "image", 2)
    image = image.map(lambda x: (0 * x).requires_grad_())
    scores = StackedAttention()(image, text)
    scores.sum().backward()
    assert image.values.grad is not None and image.values.grad.isfinite().all()
    torch.testing.assert_close(scores, torch.tensor([[2.0]]).log() / 6)


@pytest.mark.parametrize("wrong", [{"direction": "both"}, {"norm": "l1"}, {"aggregate": "median"}])
def test_an_unknown_option_raises_an_error_with_the_choices(wrong: dict[str, str]):
    with pytest.raises(ValueError, match=f"must be one of .*, got '{next(iter(wrong.values()))}'"):
        StackedAttention(**wrong)  # type: ignore[arg-type]


def test_order_similarity_counts_only_violations():
    image, text = torch.tensor([[1.0, -2.0]]), torch.tensor([[-1.0, 1.0], [4.0, 6.0]])
    assert order_similarity(image, text).tolist() == [[0.0, -5.0]]
    assert cosine(image, text).tolist() == [[-3.0, -8.0]]


def test_zero_vectors_stay_zero_with_finite_gradients():
    x = torch.zeros(2, 3, requires_grad=True)
    (unit(x).sum() + order_similarity(x, x).sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all() and not unit(x).any()


@pytest.mark.parametrize("direction", ["text", "image"])
def test_scores_do_not_depend_on_the_length_of_the_key_vectors(direction: str):
    """Relevance is a cosine, and "l2" normalises the products: vectors a thousand times shorter score the same."""
    attention = StackedAttention(direction, "l2", "mean", lambda_softmax=4.0)
    image, text = tokens(REGIONS, "image", 0), tokens(WORDS, "text", 1)
    short = [image.map(lambda x: x / 1000), text] if direction == "text" else [image, text.map(lambda x: x / 1000)]
    torch.testing.assert_close(attention(*short), attention(image, text), rtol=1e-3, atol=1e-4)
