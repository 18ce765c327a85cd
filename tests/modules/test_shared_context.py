"""Cross-attention to contexts that several samples share: equal to each sample's own copy, and projected once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.modules.attention import CrossAttention, SharedContext
from diptych.modules.block import PostNormBlock
from diptych.modules.fusion import pooled_cross_attention
from diptych.modules.packed_attention import Grouping
from diptych.modules.tokens import Span, Tokens, packing
from tests.generation.counting import rows_computed

LENGTHS = (5, 2, 4)  # of the contexts
OWNERS = {
    "equal numbers": [0, 0, 1, 1, 2, 2],
    "other numbers": [0, 0, 0, 1, 2, 2],
    "one without": [0, 0, 2, 2, 2, 2],
    "in another order": [2, 0, 1, 0, 1, 2],
    "other numbers in another order": [2, 0, 2, 1, 0, 2],
}


def ragged(lengths: tuple[int, ...], modality: str = "text") -> Tokens:
    values = torch.randn(len(lengths), max(lengths), 16, generator=torch.Generator().manual_seed(len(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Tokens.from_padded(
        values, mask, Span(modality, "cls", 1), Span(modality, "words", max(lengths) - 1)
    )  # of text and image alike


def real(tokens: Tokens) -> Tensor:
    return tokens.to_padded()[tokens.mask]


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@torch.no_grad()
def test_shared_contexts_equal_a_copy_for_each_sample(owner: list[int], packed: bool):
    torch.manual_seed(0)
    attention = CrossAttention(16, 4)
    with packing(packed):
        contexts, text = ragged(LENGTHS, "image"), ragged((3, 1, 2, 3, 2, 1))
        shared = SharedContext(contexts, torch.tensor(owner))
        expected = attention(text, contexts.index_samples(torch.tensor(owner)))
        torch.testing.assert_close(real(attention(text, shared)), real(expected), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(real(attention(text, shared.expanded())), real(expected), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_contexts_are_projected_once_for_all_samples_calls_and_views():
    attention, contexts = CrossAttention(16, 4), ragged(LENGTHS, "image")
    shared = SharedContext.of(contexts)
    with rows_computed(attention.key, attention.value) as rows:
        for owner in ([0, 1, 2], [0, 0, 1, 1, 2, 2], [1, 2]):
            part = shared.index_samples(torch.tensor(owner)).select(name="words").map(torch.tanh)
            text = ragged((2,) * len(owner))
            words = contexts.select(name="words").map(torch.tanh).index_samples(torch.tensor(owner))
            got, rows_before = attention(text, part), list(rows)
            torch.testing.assert_close(got.values, attention(text, words).values, rtol=1e-5, atol=1e-6)
            rows[:] = rows_before  # not counting the expected values
    assert rows == [3 * 4, 3 * 4]


def test_tokens_of_another_number_of_samples_raise():
    shared = SharedContext(ragged(LENGTHS), torch.tensor([0, 1, 2, 2]))
    with pytest.raises(ValueError, match="tokens of 4 samples, as many as share the contexts, got 3"):
        CrossAttention(16, 4)(ragged((1, 1, 1)), shared)


@pytest.mark.parametrize("owner", [[0, 0, 1, 2, 2], [2, 0, 1, 0, 2]])
def test_gradients_reach_the_shared_contexts(owner: list[int]):
    torch.manual_seed(0)
    attention, samples, text = CrossAttention(16, 4), torch.tensor(owner), ragged((3, 1, 2, 3, 2))
    gradients = []
    for share in (True, False):
        values = ragged(LENGTHS).values.clone().requires_grad_()
        contexts = Tokens(values, ragged(LENGTHS).layout)
        context = SharedContext(contexts, samples) if share else contexts.index_samples(samples)
        attention(text, context).values.square().sum().backward()
        gradients.append(values.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@torch.no_grad()
def test_the_pooled_token_equals_that_after_all_blocks(depth: int, packed: bool):
    torch.manual_seed(depth)
    blocks = [PostNormBlock(16, 4, 32, context_dim=16).eval() for _ in range(depth)]
    owner = torch.tensor([0, 0, 1, 2, 2])
    with packing(packed):
        text, contexts = ragged((3, 1, 2, 3, 2)), ragged(LENGTHS, "image")
        expected = text
        for block in blocks:
            expected = block(expected, contexts.index_samples(owner))
        pooled = pooled_cross_attention(blocks, blocks[0].self_attend(text), SharedContext(contexts, owner))
    torch.testing.assert_close(pooled, expected.first(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("owner", [[0, 0, 1, 2], [2, 0, 1, 0]])
def test_layers_order_the_rows_of_packed_texts_once(owner: list[int], monkeypatch: pytest.MonkeyPatch):
    text, image = ragged((3, 1, 2, 4)).pack(), ragged((5, 2, 4), "image").pack()
    built: list[str] = []
    build = Grouping.__init__
    monkeypatch.setattr(Grouping, "__init__", lambda self, q, k, kind: (built.append(kind), build(self, q, k, kind))[1])
    context = SharedContext(image, torch.tensor(owner))
    for _ in range(3):
        text = CrossAttention(16, 2)(text, context)
    assert len(built) == 1


def test_no_text_of_any_context():
    image = ragged((5, 2, 4), "image")
    text = Tokens.from_padded(torch.zeros(0, 4, 16), torch.ones(0, 4, dtype=torch.bool), Span("text", "words", 4))
    for packed in (False, True):
        context = SharedContext(image.pack() if packed else image, torch.zeros(0, dtype=torch.long))
        attended = CrossAttention(16, 2)(text.pack() if packed else text, context)
        assert attended.to_padded().shape == (0, 4, 16)
