"""Operations on tokens against a plain loop over samples, in both layouts, with gradients; and the Batch classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diptych.batch import Batch, Image, Matching, Text
from diptych.modules.tokens import Layout, Span, Tokens, packing

WIDTH = 3
NAMES = (("text", "cls"), ("text", "words"), ("image", "cls"), ("image", "patches"), ("image", "regions"))


@dataclass(frozen=True)
class Ragged:
    """A padding mask over spans of these lengths. Cell (i, 0) is always real."""

    lengths: tuple[int, ...]
    mask: tuple[tuple[bool, ...], ...]
    seed: int

    def tokens(self, values: Tensor | None = None) -> Tokens:
        spans = (Span(*NAMES[i % len(NAMES)], length) for i, length in enumerate(self.lengths))
        return Tokens.from_padded(self.values() if values is None else values, torch.tensor(self.mask), *spans)

    def values(self) -> Tensor:
        """Different values everywhere, padding included, so that values leaking from padding would show."""
        return self.draw(len(self.mask), sum(self.lengths), WIDTH)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)


@st.composite
def ragged(draw: st.DrawFn, samples: int | None = None) -> Ragged:
    b = draw(st.integers(1, 4)) if samples is None else samples
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(lambda x: x[0] > 0))
    row = st.lists(st.booleans(), min_size=sum(lengths) - 1, max_size=sum(lengths) - 1)
    mask = tuple((True, *draw(row)) for _ in range(b))
    return Ragged(tuple(lengths), mask, draw(st.integers(0, 99)))


def samples(tokens: Tokens) -> list[Tensor]:
    """The real tokens of each sample, from either layout."""
    if tokens.packed:
        return list(tokens.values.split(tokens.mask.sum(1).tolist()))
    return [row[mask] for row, mask in zip(tokens.values, tokens.mask, strict=True)]


def bounds(case: Ragged) -> list[tuple[int, int]]:
    ends = list(accumulate(case.lengths))
    return list(zip([0, *ends], ends, strict=False))


def random_mask(case: Ragged) -> Tensor:
    """A random mask that may include padding, always with column 0."""
    keep = torch.rand(len(case.mask), sum(case.lengths), generator=torch.Generator().manual_seed(case.seed)) < 0.5
    return keep | (torch.arange(keep.shape[1]) == 0)


def masked_rows(case: Ragged, values: Tensor, columns: Tensor) -> list[Tensor]:
    mask = torch.tensor(case.mask) & columns
    return [row[cells] for row, cells in zip(values, mask, strict=True)]


def repeated(case: Ragged) -> Tensor:
    return torch.randint(len(case.mask), (5,), generator=torch.Generator().manual_seed(case.seed))


def all_columns(case: Ragged) -> Tensor:
    return torch.ones(sum(case.lengths), dtype=torch.bool)


def image_columns(case: Ragged) -> Tensor:
    columns = torch.zeros(sum(case.lengths), dtype=torch.bool)
    for i, (start, end) in enumerate(bounds(case)):
        columns[start:end] = NAMES[i % len(NAMES)][0] == "image"
    return columns


def words_or_cls(case: Ragged) -> str:
    return "words" if len(case.lengths) > 1 else "cls"


def named_columns(case: Ragged) -> Tensor:
    columns = torch.zeros(sum(case.lengths), dtype=torch.bool)
    for i, (start, end) in enumerate(bounds(case)):
        columns[start:end] = NAMES[i % len(NAMES)] == ("text", words_or_cls(case))
    return columns


Operation = tuple[Callable[[Ragged, Tokens], object], Callable[[Ragged, Tensor], list[Tensor]]]

# name: the operation on tokens; the expected result from padded values, as one tensor per sample
OPERATIONS: dict[str, Operation] = {
    "pack": (lambda c, t: t.pack(), lambda c, v: masked_rows(c, v, all_columns(c))),
    "map": (lambda c, t: t.map(torch.sin), lambda c, v: masked_rows(c, v.sin(), all_columns(c))),
    "plus": (lambda c, t: t + t.map(torch.sin), lambda c, v: masked_rows(c, v + v.sin(), all_columns(c))),
    "add a vector": (
        lambda c, t: t.add(c.draw(WIDTH)),
        lambda c, v: masked_rows(c, v + c.draw(WIDTH), all_columns(c)),
    ),
    "add by column": (
        lambda c, t: t.add(c.draw(sum(c.lengths), WIDTH)),
        lambda c, v: masked_rows(c, v + c.draw(sum(c.lengths), WIDTH), all_columns(c)),
    ),
    "add padded values": (
        lambda c, t: t.add(c.draw(len(c.mask), sum(c.lengths), WIDTH)),
        lambda c, v: masked_rows(c, v + c.draw(*v.shape), all_columns(c)),
    ),
    "map each modality": (
        lambda c, t: t.map_each({"text": torch.sin, "image": torch.exp}),
        lambda c, v: masked_rows(c, torch.where(image_columns(c)[:, None], v.exp(), v.sin()), all_columns(c)),
    ),
    "scale": (
        lambda c, t: t.scale(c.draw(len(c.mask))),
        lambda c, v: masked_rows(c, v * c.draw(len(c.mask))[:, None, None], all_columns(c)),
    ),
    "select by modality": (
        lambda c, t: t.select("image") if len(c.lengths) > 2 else t,
        lambda c, v: masked_rows(c, v, image_columns(c) if len(c.lengths) > 2 else all_columns(c)),
    ),
    "select by name": (
        lambda c, t: t.select("text", words_or_cls(c)),
        lambda c, v: masked_rows(c, v, named_columns(c)),
    ),
    "apply_mask": (lambda c, t: t.apply_mask(random_mask(c)), lambda c, v: masked_rows(c, v, random_mask(c))),
    "index_samples": (
        lambda c, t: t.index_samples(repeated(c)),
        lambda c, v: [masked_rows(c, v, all_columns(c))[i] for i in repeated(c).tolist()],
    ),
    "first": (lambda c, t: t.first(), lambda c, v: [row[0] for row in v]),
    "mean": (lambda c, t: t.mean(), lambda c, v: [x.mean(0) for x in masked_rows(c, v, all_columns(c))]),
    "gather": (
        lambda c, t: t.gather(random_mask(c) & t.mask),
        lambda c, v: masked_rows(c, v, random_mask(c)),
    ),
    "to_padded": (
        lambda c, t: t.to_padded() * t.mask[:, :, None],
        lambda c, v: list(v * torch.tensor(c.mask)[:, :, None]),
    ),
    "index_samples of apply_mask": (
        lambda c, t: t.apply_mask(random_mask(c)).index_samples(repeated(c)),
        lambda c, v: [masked_rows(c, v, random_mask(c))[i] for i in repeated(c).tolist()],
    ),
}


def flat(result: object) -> Tensor:
    """The result of an operation as rows, without padding."""
    if isinstance(result, Tokens):
        return torch.cat(samples(result))
    assert isinstance(result, Tensor)
    return result.reshape(-1, WIDTH)


@pytest.mark.quick("apply_mask", "gather", "to_padded", "pack", "index_samples")
@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=25, deadline=None)
@given(case=ragged())
def test_an_operation_and_its_gradients_equal_the_loop_in_both_layouts(name: str, case: Ragged):
    operation, expected_rows = OPERATIONS[name]
    gradients = []
    for packed in (False, True):
        values = case.values().requires_grad_()
        with packing(packed):
            tokens = case.tokens(values)
        assert tokens.packed == packed
        result = flat(operation(case, tokens))
        expected = torch.cat([x.reshape(-1, WIDTH) for x in expected_rows(case, values)])
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        weight = case.draw(*result.shape)
        gradients += [torch.autograd.grad((x * weight).sum(), values)[0] for x in (result, expected)]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-12)
    assert (gradients[0][~torch.tensor(case.mask)] == 0).all()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), b=st.integers(1, 4), parts=st.integers(1, 3), packed=st.booleans())
def test_concat_joins_each_samples_tokens_and_split_inverts_it(data: st.DataObject, b: int, parts: int, packed: bool):
    cases = [data.draw(ragged(b)) for _ in range(parts)]
    values = [case.values().requires_grad_() for case in cases]
    with packing(packed):
        tokens = [case.tokens(v) for case, v in zip(cases, values, strict=True)]
    concatenated = Tokens.concat(*tokens)
    assert concatenated.packed == packed
    assert concatenated.layout.spans == tuple(s for t in tokens for s in t.layout.spans)
    for i, sample in enumerate(samples(concatenated)):
        torch.testing.assert_close(sample, torch.cat([samples(t)[i] for t in tokens]), rtol=0, atol=0)
    back = concatenated.split(*(t.layout for t in tokens))
    assert len(back) == parts
    for a, t in zip(back, tokens, strict=True):
        assert a.layout is t.layout
        torch.testing.assert_close(a.values, t.values, rtol=0, atol=0)
    weights = [case.draw(*t.pack().values.shape) for case, t in zip(cases, tokens, strict=True)]
    torch.stack([(t.pack().values * w).sum() for t, w in zip(back, weights, strict=True)]).sum().backward()
    for case, v, w in zip(cases, values, weights, strict=True):
        assert v.grad is not None
        torch.testing.assert_close(v.grad[torch.tensor(case.mask)], w, rtol=0, atol=0)


def test_to_padded_of_packed_tokens_is_zero_at_padding_and_of_padded_tokens_unchanged():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.arange(1.0, 7.0).view(2, 3, 1)
    tokens = Tokens.from_padded(values, mask, Span("text", "words", 3))
    assert tokens.to_padded() is values
    assert tokens.pack().to_padded().flatten().tolist() == [1, 2, 0, 4, 0, 0]
    assert tokens.pack().pack().values.flatten().tolist() == [1, 2, 4]


def test_packing_applies_within_its_block_only_even_after_an_error():
    case = Ragged((2,), ((True, False),), 0)
    with pytest.raises(ZeroDivisionError), packing():
        with packing(False):
            assert not case.tokens().packed
        assert case.tokens().packed
        raise ZeroDivisionError
    assert not case.tokens().packed


def test_operations_keep_the_dtype_bfloat16():
    case = Ragged((2, 2), ((True, False, True, True), (True, True, True, False)), 0)
    tokens = case.tokens(case.values().bfloat16()).pack()
    for other in (tokens.to_padded(), tokens.mean(), tokens.first(), tokens.apply_mask(random_mask(case)).values):
        assert other.dtype == torch.bfloat16


@pytest.mark.parametrize("packed", [False, True])
def test_wrong_use_raises_an_error_with_its_cause(packed: bool):
    mask = torch.ones(2, 3, dtype=torch.bool)
    with packing(packed):
        tokens = Tokens.from_padded(torch.zeros(2, 3, 4), mask, Span("text", "cls", 1), Span("text", "words", 2))
        other = Tokens.from_padded(torch.zeros(2, 3, 4), mask, Span("text", "words", 3))
    with pytest.raises(ValueError, match="same Layout object"):
        _ = tokens + other
    with pytest.raises(KeyError, match="no span with modality 'image' and name 'patches'"):
        tokens.select("image", "patches")
    with pytest.raises(ValueError, match="must cover the mask's 3 columns"):
        Layout(mask, (Span("text", "words", 2),))
    with pytest.raises(ValueError, match="cannot concatenate packed and padded tokens"):
        Tokens.concat(tokens, Tokens(torch.zeros(6, 4) if not packed else torch.zeros(2, 3, 4), other.layout))


# -- images, texts and batches ----------------------------------------------------------------------------------------


def test_image_sizes_are_inferred_from_zero_padding():
    pixels = torch.zeros(3, 3, 4, 6)
    pixels[0, :, :2, :5] = 0.3
    pixels[1] = -1.0
    pixels[2, :, :3, :1] = 0.1
    assert Image.from_padded(pixels).sizes.tolist() == [[2, 5], [4, 6], [3, 1]]


def test_a_mid_grey_pixel_does_not_shorten_the_image():
    pixels = torch.full((1, 3, 4, 4), 0.5)
    pixels[0, :, 1, 0] = 0.0  # in the column that gives heights
    pixels[0, :, 0, 2] = torch.tensor([0.5, -0.25, -0.25])  # in the row that gives widths
    assert Image.from_padded(pixels).sizes.tolist() == [[4, 4]]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_any_image_sizes_are_inferred(sizes: list[tuple[int, int]]):
    pixels = torch.zeros(len(sizes), 3, 6, 6)
    for canvas, (h, w) in zip(pixels, sizes, strict=True):
        canvas[:, :h, :w] = 0.25
    assert Image.from_padded(pixels).sizes.tolist() == [list(size) for size in sizes]


def test_images_from_full_have_no_padding():
    assert Image.from_full(torch.zeros(2, 3, 4, 6)).sizes.tolist() == [[4, 6], [4, 6]]


def test_indexing_and_moving_a_batch_covers_all_its_tensors():
    text = Text(torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool))
    image = Image.from_full(torch.rand(2, 3, 4, 4))
    matching = Matching(image, torch.tensor([True, False]))
    batch = Batch(1, 2, torch.tensor([7, 8]), image, text, matching, labels={"class": torch.tensor([0, 1])})
    there = batch.to("meta")
    assert (there.seed, there.step, len(there)) == (1, 2, 2)
    assert there.text is not None and there.matching is not None and there.image is not None
    for moved in (
        there.ids,
        there.text.word_start,
        there.image.sizes,
        there.matching.image.pixels,
        there.labels["class"],
    ):
        assert moved is not None and moved.device.type == "meta"
    assert there.image2 is None
    last = text[1:]
    assert (len(last), last.ids.tolist()) == (1, [[3, 4, 5]])
    assert last.word_start is not None and last.word_start.shape == (1, 3)
    assert image[torch.tensor([1])].sizes.tolist() == [[4, 4]]
    assert Text(text.ids, text.mask)[:1].word_start is None


def test_samples_of_batches_of_other_lengths_are_concatenated():
    def part(lengths: list[int], seed: int) -> Tokens:
        n = max(lengths)
        values = torch.randn(len(lengths), n, 3, generator=torch.Generator().manual_seed(seed))
        mask = torch.arange(n) < torch.tensor(lengths)[:, None]
        spans = Span("text", "words", n - 1), Span("text", "cls", 1)  # a span that a wider one comes before
        return Tokens.from_padded(values, mask.flip(1), *spans)

    for packed in (False, True):
        with packing(packed):
            parts = part([4, 2], 1), part([2], 2), part([3, 5], 3)
            joined = Tokens.concat_samples(*parts)
        assert len(joined) == 5 and joined.layout.spans == parts[2].layout.spans and joined.packed == packed
        assert torch.equal(joined.pack().values, torch.cat([p.pack().values for p in parts]))
        assert torch.equal(joined.select(name="cls").first(), torch.cat([p.select(name="cls").first() for p in parts]))


def test_samples_of_other_spans_or_layouts_are_not_concatenated():
    image = Tokens.from_padded(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), Span("image", "patches", 2))
    text = Tokens.from_padded(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), Span("text", "words", 2))
    with pytest.raises(ValueError, match="expected samples with the same spans"):
        Tokens.concat_samples(image, text)
    with pytest.raises(ValueError, match="all packed or all padded"):
        Tokens.concat_samples(text, text.pack())
