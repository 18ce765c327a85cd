"""Attention over packed tokens computes what attention over padded ones does, in few calls and with little padding."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.modules import attention
from diptych.modules.attention import Causal, SelfAttention, causal, scaled_dot_product_attention
from diptych.modules.packed_attention import ADDED_CELLS, Grouping
from diptych.modules.tokens import Layout, Span, Tokens
from tests.modules.test_attention import HEADS, WIDTH, layout, packed, padded_values

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(queries=LENGTHS, keys=LENGTHS, kind=st.sampled_from(["similar", "equal", "columns"]), gaps=st.booleans())
def test_a_grouping_has_every_sample_once_and_every_row_comes_back(
    queries: list[int], keys: list[int], kind: str, gaps: bool
):
    query, key = layout(queries, gaps=gaps), layout((keys * len(queries))[: len(queries)], gaps=gaps)
    grouping = Grouping.of(query, key, kind)
    assert Grouping.of(query, key, kind) is grouping, "computed once for all layers"
    assert sorted(i for group in grouping.groups for i in group.samples) == list(range(len(queries)))
    for side, at in ((grouping.query, query), (grouping.key, key)):
        values = torch.randn(len(at.flat), 3 * WIDTH)
        groups = side.to_groups(values, 3, HEADS)
        back = [side.to_packed([group[part] for group in groups]) for part in range(3)]
        assert torch.equal(torch.cat(back, 1), values)
        for number, group in enumerate(grouping.groups):
            owners, real = at.owner[side.rows[number]], side.real[number]
            real = torch.ones_like(owners, dtype=torch.bool) if real is None else real
            for sample, owner, inside in zip(group.samples, owners, real, strict=True):
                assert (owner[inside] == sample).all() and int(inside.sum()) == at.lengths[sample]
    if kind == "equal":
        assert len(grouping.groups) == len({(n, m) for n, m in zip(query.lengths, key.lengths, strict=True)})
        assert not grouping.query.padded and not grouping.key.padded


def test_similar_lengths_share_a_call_and_different_ones_do_not():
    for lengths, samples in (([12, 9, 14, 20, 10], [[1, 4, 0, 2, 3]]), ([200, 201, 400, 200], [[0, 3, 1], [2]])):
        at = layout(lengths)
        assert [group.samples for group in Grouping(at, at, "similar").groups] == samples
    lengths = torch.randint(1, 500, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    at = layout(lengths)
    grouping = Grouping(at, at, "similar")
    cells = sum(len(g.samples) * g.queries * g.keys for g in grouping.groups)
    assert cells <= sum(n * n for n in lengths) + ADDED_CELLS * len(lengths)
    assert len(grouping.groups) < len(set(lengths))


@pytest.mark.parametrize("dims", [2, 3, 4])
@pytest.mark.parametrize("with_bias", [False, True])
@settings(max_examples=15, deadline=None)
@given(queries=LENGTHS, gaps=st.booleans(), seed=st.integers(0, 99))
def test_masks_and_biases_need_no_padded_canvas(dims: int, with_bias: bool, queries: list[int], gaps: bool, seed: int):
    """Also in gradients. Every token attends to itself, as a row without keys has no softmax."""
    at, draw = layout(queries, gaps=gaps), torch.Generator().manual_seed(seed)
    n = at.mask.shape[1]
    shape = (len(queries), HEADS, n, n)[4 - dims :] if dims != 3 else (len(queries), n, n)
    allowed = (torch.rand(shape, generator=draw) < 0.5) | torch.eye(n, dtype=torch.bool)
    bias = torch.randn(HEADS, n, n, generator=draw, dtype=torch.float64).requires_grad_() if with_bias else None
    q, k, v = (padded_values(at, i).requires_grad_() for i in range(3))
    inputs = [q, k, v] if bias is None else [q, k, v, bias]
    wanted = packed(scaled_dot_product_attention(q, k, v, HEADS, at, at, allowed, bias), at)
    rows = packed(q, at), packed(k, at), packed(v, at)
    got = scaled_dot_product_attention(rows[0], rows[1], rows[2], HEADS, at, at, allowed, bias)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    weight = torch.randn(got.shape, generator=draw, dtype=torch.float64)
    grads = [torch.autograd.grad((x * weight).sum(), inputs) for x in (got, wanted)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_bias", [False, True])
@settings(max_examples=25, deadline=None)
@given(queries=LENGTHS, gaps=st.booleans())
def test_packed_causal_attention_equals_padded(with_bias: bool, queries: list[int], gaps: bool):
    at = layout(queries, gaps=gaps)
    values, n = padded_values(at, 0), at.mask.shape[1]
    module = SelfAttention(WIDTH, HEADS).double()
    bias = torch.randn(HEADS, n, n, dtype=torch.float64) if with_bias else None
    wanted = module(Tokens(values, at), causal(n, n), bias)
    got = module(Tokens(values, at).pack(), Causal(), bias)
    torch.testing.assert_close(got.values, packed(wanted.values, at), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("lengths", "calls"), [([5] * 4, 1), ([5, 3, 4, 5], 1), ([90, 200, 90, 10], 3)])
def test_self_attention_makes_one_call_for_similar_samples_and_copies_each_value_once(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], calls: int
):
    counted = []
    kernel = attention._softmax_attention
    monkeypatch.setattr(attention, "_softmax_attention", lambda *a: (counted.append(a[0].shape), kernel(*a))[1])
    module, at = SelfAttention(WIDTH, HEADS), layout(lengths)
    tokens = Tokens(torch.randn(len(at.flat), WIDTH), at)
    module(tokens)
    assert len(counted) == calls
    with torch.profiler.profile() as profile:
        module(tokens)
    names = [event.name for event in profile.events() or []]
    assert names.count("aten::index_select") == (0 if at.full else 2), "to the groups and back"
    assert ("aten::index" not in names and "aten::clone" not in names) or at.full


def test_packing_a_batch_without_padding_copies_nothing():
    at = Layout(torch.ones(2, 3, dtype=torch.bool), (Span("text", "cls", 1), Span("text", "words", 2)))
    values = torch.randn(2, 3, WIDTH)
    tokens = Tokens(values, at).pack()
    assert tokens.values.data_ptr() == values.data_ptr()
    assert tokens.to_padded().data_ptr() == values.data_ptr()
    assert torch.equal(tokens.first(), values[:, 0])


def test_a_batch_of_nothing_and_samples_without_keys_stay_finite_where_padded_attention_is():
    empty = layout([0, 0], columns=2)
    rows = torch.zeros(0, WIDTH)
    assert scaled_dot_product_attention(rows, rows, rows, HEADS, empty, empty).shape == (0, WIDTH)
    query, key = layout([2, 0, 1]), layout([1, 3, 2])
    q, k = padded_values(query, 1), padded_values(key, 1)
    wanted = packed(scaled_dot_product_attention(q, k, k, HEADS, query, key), query)
    a, b, c = (packed(x, at).requires_grad_() for x, at in ((q, query), (k, key), (k, key)))
    got = scaled_dot_product_attention(a, b, c, HEADS, query, key)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    unused = torch.autograd.grad(got.sum(), (a, b, c))[2][key.owner == 1]
    assert torch.equal(unused, torch.zeros_like(unused)), "keys of a sample without queries have no gradient"


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_packed_tokens_without_a_row(shape: tuple[int, int]):
    at = Layout(torch.ones(shape, dtype=torch.bool), (Span("text", "words", shape[1]),))
    padded, draw = Tokens(torch.randn(*shape, WIDTH), at), torch.randn(shape[1], WIDTH)
    tokens, module = padded.pack(), SelfAttention(WIDTH, HEADS)
    assert tokens.to_padded().shape == padded.values.shape == tokens.add(draw).to_padded().shape
    assert module(tokens).values.shape == module(tokens, Causal()).values.shape == tokens.values.shape
    none = torch.zeros(0, dtype=torch.long)
    assert tokens.index_samples(none).to_padded().shape == (0, shape[1], WIDTH)
    assert Tokens.concat(tokens, tokens).select(name="words").to_padded().shape == (shape[0], 2 * shape[1], WIDTH)
    assert tokens.gather(at.mask).shape == (0, WIDTH) and tokens.mean().shape == (shape[0], WIDTH)


def test_masks_and_rows_are_on_the_device_of_the_layout():
    """Also where that is neither the CPU nor a CUDA GPU: on MPS."""
    real = layout([3, 1])
    at = Layout(real.mask.to("meta"), real.spans)
    vars(at).update(lengths=real.lengths, full=False, flat=real.flat.to("meta"))
    grouping = Grouping(at, at, "similar")
    assert {x.device.type for x in grouping.query.by_heads(3, HEADS)} == {"meta"}
    assert grouping.query.columns(0).device.type == "meta"
    for allowed in (None, causal, torch.ones(3, 3, dtype=torch.bool, device="meta")):
        mask = grouping.mask(0, allowed, None)
        assert mask is not None and mask.device.type == "meta"


def test_tokens_can_be_copied_and_saved_after_attention():
    at = layout([3, 1])
    tokens = SelfAttention(WIDTH, HEADS).requires_grad_(False)(Tokens(torch.randn(len(at.flat), WIDTH), at))
    assert at.partners
    for again in (copy.deepcopy(tokens), pickle.loads(pickle.dumps(tokens))):
        assert torch.equal(again.values, tokens.values) and torch.equal(again.mask, tokens.mask)
        assert again.layout.spans == at.spans and not again.layout.partners
