"""The algebra of tokens: each operation against a plain loop over samples, in both layouts, values and gradients."""

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
    """Which cells of a canvas are real, in spans of these lengths. Cell (i, 0) always is."""

    lengths: tuple[int, ...]
    real: tuple[tuple[bool, ...], ...]
    seed: int

    def tokens(self, values: Tensor | None = None) -> Tokens:
        spans = (Span(*NAMES[i % len(NAMES)], length) for i, length in enumerate(self.lengths))
        return Tokens.from_padded(self.values() if values is None else values, torch.tensor(self.real), *spans)

    def values(self) -> Tensor:
        """Different numbers everywhere, pads included: what leaks from a pad is seen."""
        return self.draw(len(self.real), sum(self.lengths), WIDTH)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)


@st.composite
def ragged(draw: st.DrawFn, samples: int | None = None) -> Ragged:
    b = draw(st.integers(1, 4)) if samples is None else samples
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(lambda x: x[0] > 0))
    row = st.lists(st.booleans(), min_size=sum(lengths) - 1, max_size=sum(lengths) - 1)
    real = tuple((True, *draw(row)) for _ in range(b))
    return Ragged(tuple(lengths), real, draw(st.integers(0, 99)))


def samples(tokens: Tokens) -> list[Tensor]:
    """The real rows of each sample: what tokens mean, whatever their layout."""
    if tokens.packed:
        return list(tokens.values.split(tokens.mask.sum(1).tolist()))
    return [row[real] for row, real in zip(tokens.values, tokens.mask, strict=True)]


def bounds(case: Ragged) -> list[tuple[int, int]]:
    ends = list(accumulate(case.lengths))
    return list(zip([0, *ends], ends, strict=False))


def kept(case: Ragged) -> Tensor:
    """Some cells, not all of them real, always with column 0."""
    keep = torch.rand(len(case.real), sum(case.lengths), generator=torch.Generator().manual_seed(case.seed)) < 0.5
    return keep | (torch.arange(keep.shape[1]) == 0)


def columns_kept(case: Ragged, values: Tensor, columns: Tensor) -> list[Tensor]:
    real = torch.tensor(case.real) & columns
    return [row[cells] for row, cells in zip(values, real, strict=True)]


def repeated(case: Ragged) -> Tensor:
    return torch.randint(len(case.real), (5,), generator=torch.Generator().manual_seed(case.seed))


def all_columns(case: Ragged) -> Tensor:
    return torch.ones(sum(case.lengths), dtype=torch.bool)


def image_columns(case: Ragged) -> Tensor:
    columns = torch.zeros(sum(case.lengths), dtype=torch.bool)
    for i, (start, end) in enumerate(bounds(case)):
        columns[start:end] = NAMES[i % len(NAMES)][0] == "image"
    return columns


def words_or_first(case: Ragged) -> str:
    return "words" if len(case.lengths) > 1 else "cls"


def named_columns(case: Ragged) -> Tensor:
    columns = torch.zeros(sum(case.lengths), dtype=torch.bool)
    for i, (start, end) in enumerate(bounds(case)):
        columns[start:end] = NAMES[i % len(NAMES)] == ("text", words_or_first(case))
    return columns


Operation = tuple[Callable[[Ragged, Tokens], object], Callable[[Ragged, Tensor], list[Tensor]]]

# name: the operation on tokens; what it means, from the padded values, as one tensor per sample
OPERATIONS: dict[str, Operation] = {
    "pack": (lambda c, t: t.pack(), lambda c, v: columns_kept(c, v, all_columns(c))),
    "map": (lambda c, t: t.map(torch.sin), lambda c, v: columns_kept(c, v.sin(), all_columns(c))),
    "plus": (lambda c, t: t + t.map(torch.sin), lambda c, v: columns_kept(c, v + v.sin(), all_columns(c))),
    "add a vector": (
        lambda c, t: t.add(c.draw(WIDTH)),
        lambda c, v: columns_kept(c, v + c.draw(WIDTH), all_columns(c)),
    ),
    "add by column": (
        lambda c, t: t.add(c.draw(sum(c.lengths), WIDTH)),
        lambda c, v: columns_kept(c, v + c.draw(sum(c.lengths), WIDTH), all_columns(c)),
    ),
    "add a canvas": (
        lambda c, t: t.add(c.draw(len(c.real), sum(c.lengths), WIDTH)),
        lambda c, v: columns_kept(c, v + c.draw(*v.shape), all_columns(c)),
    ),
    "map each modality": (
        lambda c, t: t.map_each({"text": torch.sin, "image": torch.exp}),
        lambda c, v: columns_kept(c, torch.where(image_columns(c)[:, None], v.exp(), v.sin()), all_columns(c)),
    ),
    "scale": (
        lambda c, t: t.scale(c.draw(len(c.real))),
        lambda c, v: columns_kept(c, v * c.draw(len(c.real))[:, None, None], all_columns(c)),
    ),
    "by modality": (
        lambda c, t: t.select("image") if len(c.lengths) > 2 else t,
        lambda c, v: columns_kept(c, v, image_columns(c) if len(c.lengths) > 2 else all_columns(c)),
    ),
    "by name": (
        lambda c, t: t.select("text", words_or_first(c)),
        lambda c, v: columns_kept(c, v, named_columns(c)),
    ),
    "pick": (lambda c, t: t.apply_mask(kept(c)), lambda c, v: columns_kept(c, v, kept(c))),
    "take": (
        lambda c, t: t.index_samples(repeated(c)),
        lambda c, v: [columns_kept(c, v, all_columns(c))[i] for i in repeated(c).tolist()],
    ),
    "first": (lambda c, t: t.first(), lambda c, v: [row[0] for row in v]),
    "mean": (lambda c, t: t.mean(), lambda c, v: [x.mean(0) for x in columns_kept(c, v, all_columns(c))]),
    "rows": (
        lambda c, t: t.gather(kept(c) & t.mask),
        lambda c, v: columns_kept(c, v, kept(c)),
    ),
    "canvas": (
        lambda c, t: t.to_padded() * t.mask[:, :, None],
        lambda c, v: list(v * torch.tensor(c.real)[:, :, None]),
    ),
    "take of pick": (
        lambda c, t: t.apply_mask(kept(c)).index_samples(repeated(c)),
        lambda c, v: [columns_kept(c, v, kept(c))[i] for i in repeated(c).tolist()],
    ),
}


def flat(result: object) -> Tensor:
    """What an operation gave, as its real rows one below the other."""
    if isinstance(result, Tokens):
        return torch.cat(samples(result))
    assert isinstance(result, Tensor)
    return result.reshape(-1, WIDTH)


@pytest.mark.quick("pick", "rows", "canvas", "pack", "take")
@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=25, deadline=None)
@given(case=ragged())
def test_operation_means_the_same_in_both_layouts_and_so_do_gradients(name: str, case: Ragged):
    operation, meaning = OPERATIONS[name]
    gradients = []
    for packed in (False, True):
        values = case.values().requires_grad_()
        with packing(packed):
            tokens = case.tokens(values)
        assert tokens.packed == packed
        got = flat(operation(case, tokens))
        wanted = torch.cat([x.reshape(-1, WIDTH) for x in meaning(case, values)])
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        weight = case.draw(*got.shape)
        gradients += [torch.autograd.grad((x * weight).sum(), values)[0] for x in (got, wanted)]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-12)
    assert (gradients[0][~torch.tensor(case.real)] == 0).all()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), b=st.integers(1, 4), parts=st.integers(1, 3), packed=st.booleans())
def test_join_sets_samples_end_to_end_and_split_undoes_it(data: st.DataObject, b: int, parts: int, packed: bool):
    cases = [data.draw(ragged(b)) for _ in range(parts)]
    values = [case.values().requires_grad_() for case in cases]
    with packing(packed):
        tokens = [case.tokens(v) for case, v in zip(cases, values, strict=True)]
    joined = Tokens.concat(*tokens)
    assert joined.packed == packed
    assert joined.layout.spans == tuple(s for t in tokens for s in t.layout.spans)
    for i, sample in enumerate(samples(joined)):
        torch.testing.assert_close(sample, torch.cat([samples(t)[i] for t in tokens]), rtol=0, atol=0)
    back = joined.split(*(t.layout for t in tokens))
    assert len(back) == parts
    for a, t in zip(back, tokens, strict=True):
        assert a.layout is t.layout
        torch.testing.assert_close(a.values, t.values, rtol=0, atol=0)
    weights = [case.draw(*t.pack().values.shape) for case, t in zip(cases, tokens, strict=True)]
    torch.stack([(t.pack().values * w).sum() for t, w in zip(back, weights, strict=True)]).sum().backward()
    for case, v, w in zip(cases, values, weights, strict=True):
        assert v.grad is not None
        torch.testing.assert_close(v.grad[torch.tensor(case.real)], w, rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(case=ragged(), other=st.data())
def test_groups_put_samples_of_equal_lengths_side_by_side(case: Ragged, other: st.DataObject):
    here, there = case.tokens().pack().layout, other.draw(ragged(len(case.real))).tokens().pack().layout
    for a, b in ((here, there), (here, here)):
        rows, other_rows, groups = a.groups(b)
        assert sorted(rows.tolist()) == list(range(len(a.flat)))
        assert sorted(other_rows.tolist()) == list(range(len(b.flat)))
        assert len({(n, m) for _, n, m in groups}) == len(groups), "a pair of lengths appears twice"
        assert sum(count for count, _, _ in groups) == len(case.real)
        owner = torch.repeat_interleave(torch.arange(len(case.real)), torch.tensor(a.lengths))[rows].tolist()
        other_owner = torch.repeat_interleave(torch.arange(len(case.real)), torch.tensor(b.lengths))[
            other_rows
        ].tolist()
        for count, n, m in groups:
            for _ in range(count):
                mine, theirs = owner[:n], other_owner[:m]
                assert len({*mine, *theirs}) <= 1, "a group mixes rows of two samples"
                owner, other_owner = owner[n:], other_owner[m:]


def test_packed_canvas_is_zero_at_pads_and_padded_canvas_is_what_was_given():
    real = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.arange(1.0, 7.0).view(2, 3, 1)
    tokens = Tokens.from_padded(values, real, Span("text", "words", 3))
    assert tokens.to_padded() is values
    assert tokens.pack().to_padded().flatten().tolist() == [1, 2, 0, 4, 0, 0]
    assert tokens.pack().pack().values.flatten().tolist() == [1, 2, 4]


def test_packing_holds_within_its_block_only_even_through_an_error():
    case = Ragged((2,), ((True, False),), 0)
    with pytest.raises(ZeroDivisionError), packing():
        with packing(False):
            assert not case.tokens().packed
        assert case.tokens().packed
        raise ZeroDivisionError
    assert not case.tokens().packed


def test_autocast_and_half_precision_keep_their_type():
    case = Ragged((2, 2), ((True, False, True, True), (True, True, True, False)), 0)
    tokens = case.tokens(case.values().bfloat16()).pack()
    for other in (tokens.to_padded(), tokens.mean(), tokens.first(), tokens.apply_mask(kept(case)).values):
        assert other.dtype == torch.bfloat16


@pytest.mark.parametrize("packed", [False, True])
def test_errors_say_what_was_wrong(packed: bool):
    real = torch.ones(2, 3, dtype=torch.bool)
    with packing(packed):
        tokens = Tokens.from_padded(torch.zeros(2, 3, 4), real, Span("text", "cls", 1), Span("text", "words", 2))
        twin = Tokens.from_padded(torch.zeros(2, 3, 4), real, Span("text", "words", 3))
    with pytest.raises(ValueError, match="two layouts"):
        _ = tokens + twin
    with pytest.raises(KeyError, match=r"no span \(image, patches\)"):
        tokens.select("image", "patches")
    with pytest.raises(ValueError, match="do not cover 3 columns"):
        Layout(real, (Span("text", "words", 2),))
    with pytest.raises(ValueError, match="packed and padded tokens cannot be joined"):
        Tokens.concat(tokens, Tokens(torch.zeros(6, 4) if not packed else torch.zeros(2, 3, 4), twin.layout))


# -- what tokens are made from ----------------------------------------------------------------------------------------


def test_sizes_are_read_off_the_canvas():
    pixels = torch.zeros(3, 3, 4, 6)
    pixels[0, :, :2, :5] = 0.3
    pixels[1] = -1.0
    pixels[2, :, :3, :1] = 0.1
    assert Image.from_padded(pixels).sizes.tolist() == [[2, 5], [4, 6], [3, 1]]


def test_a_mid_grey_pixel_is_not_the_end_of_a_picture():
    pixels = torch.full((1, 3, 4, 4), 0.5)
    pixels[0, :, 1, 0] = 0.0  # in the column that heights are read from
    pixels[0, :, 0, 2] = torch.tensor([0.5, -0.25, -0.25])  # in the row that widths are read from
    assert Image.from_padded(pixels).sizes.tolist() == [[4, 4]]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_any_sizes_are_read_back(sizes: list[tuple[int, int]]):
    pixels = torch.zeros(len(sizes), 3, 6, 6)
    for canvas, (h, w) in zip(pixels, sizes, strict=True):
        canvas[:, :h, :w] = 0.25
    assert Image.from_padded(pixels).sizes.tolist() == [list(size) for size in sizes]


def test_whole_images_fill_their_canvas():
    assert Image.from_full(torch.zeros(2, 3, 4, 6)).sizes.tolist() == [[4, 6], [4, 6]]


def test_batches_are_cut_and_moved_whole():
    text = Text(torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool))
    image = Image.from_full(torch.rand(2, 3, 4, 4))
    batch = Batch(1, 2, torch.tensor([7, 8]), image, text, Matching(image, torch.tensor([True, False])), labels={"class": torch.tensor([0, 1])})  # fmt: skip
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
