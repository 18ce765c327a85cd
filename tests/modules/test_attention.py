"""Attention: one function of its tokens, however they lie in memory and whichever kernel computes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diptych.modules.attention import (
    SelfAttention,
    _attend_grouped,
    _attend_jagged,
    _attend_padded,
    scaled_dot_product_attention,
)
from diptych.modules.tokens import Layout, Span, Tokens

WIDTH, HEADS = 8, 2


def layout(lengths: list[int], columns: int | None = None, gaps: bool = False) -> Layout:
    """Samples with so many real tokens, at the left of the canvas, or with `gaps` anywhere on it."""
    n = max(lengths) if columns is None else columns
    real = torch.arange(n) < torch.tensor(lengths)[:, None]
    if gaps:
        shuffle = torch.rand(real.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
        real = real.gather(1, shuffle)
    return Layout(real, (Span("text", "words", n),))


def canvas(at: Layout, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values that are huge at pads: attending to one would be seen."""
    b, n = at.mask.shape
    values = torch.randn(b, n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(at.mask[:, :, None], values, 1e3).to(dtype)


def by_loop(q: Tensor, k: Tensor, v: Tensor, asking: Layout, asked: Layout) -> Tensor:
    """The formula for one sample and one head at a time: softmax(q kᵀ / √d) v. Real rows only."""
    out = []
    for i in range(len(q)):
        a, b, c = q[i][asking.mask[i]], k[i][asked.mask[i]], v[i][asked.mask[i]]
        heads = zip(*(x.chunk(HEADS, 1) for x in (a, b, c)), strict=True)
        out.append(torch.cat([(x @ y.T / x.shape[1] ** 0.5).softmax(1) @ z for x, y, z in heads], 1))
    return torch.cat(out)


def packed(x: Tensor, at: Layout) -> Tensor:
    return x.flatten(0, 1)[at.flat]


def padded_path(q: Tensor, k: Tensor, v: Tensor, asking: Layout, asked: Layout) -> Tensor:
    return packed(_attend_padded(q, k, v, HEADS, asked), asking)


def grouped_path(q: Tensor, k: Tensor, v: Tensor, asking: Layout, asked: Layout) -> Tensor:
    return _attend_grouped(packed(q, asking), packed(k, asked), packed(v, asked), HEADS, asking, asked)


def jagged_path(q: Tensor, k: Tensor, v: Tensor, asking: Layout, asked: Layout) -> Tensor:
    return _attend_jagged(packed(q, asking), packed(k, asked), packed(v, asked), HEADS, asking, asked)


PATHS: dict[str, Callable[..., Tensor]] = {"padded": padded_path, "grouped": grouped_path, "jagged": jagged_path}
lengths = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def both_layouts(here: list[int], there: list[int] | None, gaps: bool) -> tuple[Layout, Layout]:
    asking = layout(here, gaps=gaps)
    return asking, asking if there is None else layout((there * len(here))[: len(here)], columns=7, gaps=gaps)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, deadline=None)
@given(here=lengths, there=st.none() | lengths, gaps=st.booleans())
def test_every_path_gives_the_formula_and_its_gradients(
    path: str, here: list[int], there: list[int] | None, gaps: bool
):
    asking, asked = both_layouts(here, there, gaps)
    inputs = [canvas(at, i).requires_grad_() for i, at in enumerate((asking, asked, asked))]
    q, k, v = inputs
    results = [function(q, k, v, asking, asked) for function in (PATHS[path], by_loop)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    weight = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), inputs) for x in results)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["padded", "grouped"])
@pytest.mark.parametrize("here", [[4, 4], [5, 2, 5, 1]])
def test_bfloat16_on_a_cpu_stays_within_its_precision(path: str, here: list[int]):
    """There the plain formula stands in for torch's kernel: 8 bits of mantissa, so 2 % of the largest value."""
    at = layout(here)
    exact = [canvas(at, i) for i in range(3)]
    inputs = [x.bfloat16().requires_grad_() for x in exact]
    wanted_inputs = [x.detach().double().requires_grad_() for x in inputs]
    q, k, v = wanted_inputs
    got, wanted = PATHS[path](*inputs, at, at), by_loop(q, k, v, at, at)
    assert got.dtype == torch.bfloat16
    assert (got.double() - wanted).abs().max() < 0.02 * wanted.abs().max()
    grads = torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(wanted.sum(), wanted_inputs)
    for a, b in zip(*grads, strict=True):
        assert (a.double() - b).abs().max() < 0.04 * b.abs().max() + 0.01


def test_layout_decides_the_path_on_a_cpu():
    at = layout([3, 1])
    values = canvas(at, 0)
    rows = packed(values, at)
    assert scaled_dot_product_attention(values, values, values, HEADS, at, at).shape == values.shape
    torch.testing.assert_close(
        scaled_dot_product_attention(rows, rows, rows, HEADS, at, at), padded_path(values, values, values, at, at)
    )


def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(WIDTH, HEADS).double()


@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 2]])
def test_more_padding_and_what_stands_there_change_nothing(lengths: list[int]):
    module = attention()
    near, far = layout(lengths), layout(lengths, columns=9)
    values = canvas(near, 0)
    blank = torch.full((len(lengths), 9, WIDTH), -1e3, dtype=torch.float64)
    blank[:, : values.shape[1]] = torch.where(near.mask[:, :, None], values, 7.0)
    a, b = module(Tokens(values, near)), module(Tokens(blank, far))
    torch.testing.assert_close(a.values[near.mask], b.values[far.mask], rtol=1e-12, atol=1e-12)


def test_self_attention_is_the_same_packed_and_so_are_its_gradients():
    module, at = attention(), layout([3, 1, 4, 3], gaps=True)
    found = []
    for tokens in (Tokens(canvas(at, 0), at), Tokens(canvas(at, 0), at).pack()):
        out = module(tokens).pack().values
        found.append([out, *torch.autograd.grad((out**2).sum(), list(module.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_sample_attends_to_itself_alone():
    """In every layout: changing one sample changes no other."""
    at = layout([3, 3, 2])
    values = canvas(at, 0)
    other = values.clone()
    other[0] += 1
    for path in PATHS.values():
        a, b = path(values, values, values, at, at), path(other, other, other, at, at)
        assert torch.equal(a[3:], b[3:])
        assert not torch.allclose(a[:3], b[:3])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 10 does not divide into 4 heads"):
        SelfAttention(10, 4)
