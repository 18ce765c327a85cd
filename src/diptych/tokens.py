"""Tokens, and what they are made from: the one algebra in which every model of Diptych is written.

A model never sees how tokens lie in memory. `Tokens` has two layouts behind the same methods:

- **padded** (the reference): ``values`` is ``(b, n, d)``, and ``real`` says which cells hold something;
- **packed**: ``values`` is ``(t, d)``, the real rows only, sample after sample: no pad is ever computed.

Both carry the same `Layout`, in padded geometry, so that turning one into the other is one indexing step. Only this
file and ``layers/attention.py`` know which layout is in use; a test holds packed equal to padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class _Movable:
    """A frozen dataclass of tensors that can be sent to a device."""

    def to(self, device: torch.device | str, non_blocking: bool = False):
        """The same with every tensor in it, however deep, on `device`."""

        def move(x: Any) -> Any:
            if isinstance(x, (Tensor, _Movable)):
                return x.to(device, non_blocking=non_blocking)
            if isinstance(x, dict):
                return {k: move(v) for k, v in x.items()}
            return x

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var]


@dataclass(frozen=True)
class Text(_Movable):
    """A batch of token ids, padded on the right.

    `begins` is True at the first piece of each word and False inside words, at special tokens and at pads: it is what
    whole-word masking needs to know. None where the tokenizer could not say.
    """

    ids: Int[Tensor, "b n"]
    real: Bool[Tensor, "b n"]
    begins: Bool[Tensor, "b n"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> Text:
        return Text(self.ids[rows], self.real[rows], None if self.begins is None else self.begins[rows])


@dataclass(frozen=True)
class Image(_Movable):
    """A batch of images of any sizes: each lies top-left in a zero canvas; `sizes` are its (height, width) in pixels."""

    pixels: Float[Tensor, "b c h w"]
    sizes: Int[Tensor, "b 2"]

    @classmethod
    def whole(cls, pixels: Float[Tensor, "b c h w"]) -> Image:
        """Images that all fill their canvas."""
        b, _, h, w = pixels.shape
        return cls(pixels, torch.tensor([[h, w]], device=pixels.device).expand(b, 2))

    @classmethod
    def from_canvas(cls, pixels: Float[Tensor, "b c h w"]) -> Image:
        """Sizes read off the canvas, as ViLT does: a pixel whose channels sum to exactly 0 is padding.

        Height is the extent of the first column and width that of the first row. Unlike ViLT's own count a mid-grey
        pixel inside the picture does not shorten it.
        """
        inked = pixels.sum(1) != 0
        heights = _extent(inked[:, :, 0])
        widths = _extent(inked[:, 0, :])
        return cls(pixels, torch.stack([heights, widths], 1))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor | slice) -> Image:
        return Image(self.pixels[rows], self.sizes[rows])


def _extent(inked: Bool[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """One past the last True of each row."""
    places = torch.arange(1, inked.shape[1] + 1, device=inked.device)
    return (inked * places).amax(1)


@dataclass(frozen=True)
class Matching(_Movable):
    """What image-text matching is asked about: the text of each sample beside `image`, its own where `matched`."""

    image: Image
    matched: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Batch(_Movable):
    """What a training step is given. `seed`, `step` and `ids` key every random draw made for it (see keyed.py).

    `ids` are stable names of the samples: the same on every rank, in every epoch. `labels` holds what a task needs
    beside image and text (answers' soft targets, class indices), each with b rows.
    """

    seed: int
    step: int
    ids: Int[Tensor, " b"]
    image: Image | None = None
    text: Text | None = None
    matching: Matching | None = None
    second: Image | None = None  # the right-hand image, where a sample has two
    false_texts: Text | None = None  # texts that do not belong: as many for each sample, sample after sample
    labels: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Span:
    """A run of columns with one meaning. `slot` tells several images of one sample apart."""

    modality: str  # "text" or "image"
    name: str  # "cls", "words", "patches", "regions"
    length: int
    grid: tuple[int, int] | None = None  # rows and columns of the patch canvas, raster order
    slot: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """Which cells of a ``b × n`` canvas are real, and what its columns mean. Shared by all tokens of one shape."""

    real: Bool[Tensor, "b n"]
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        if sum(s.length for s in self.spans) != self.real.shape[1]:
            raise ValueError(f"spans {self.spans} do not cover {self.real.shape[1]} columns")

    @cached_property
    def flat(self) -> Int[Tensor, " t"]:
        """Indices of the real cells in the flattened canvas: row by row, so sample after sample."""
        return self.real.flatten().nonzero().squeeze(1)

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each sample."""
        return self.real.sum(1).tolist()

    @cached_property
    def full(self) -> bool:
        """Whether no cell is padding."""
        return bool(self.real.all())

    @cached_property
    def offsets(self) -> Int[Tensor, " ends"]:
        """Packed row at which each sample begins, and one past the last row."""
        return F.pad(self.real.sum(1).cumsum(0), (1, 0))

    def groups(self, other: Layout) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
        """Packed rows of this layout and of `other`, reordered so that samples of equal lengths in both are neighbours;
        and for each run of them (samples, length here, length there).
        """
        if other is not self:
            return self._grouped(other)
        if "_groups" not in self.__dict__:
            self.__dict__["_groups"] = self._grouped(self)
        return self.__dict__["_groups"]

    def _grouped(self, other: Layout) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
        pairs = list(zip(self.lengths, other.lengths, strict=True))
        order = sorted(range(len(pairs)), key=lambda i: pairs[i])
        groups = [(len(list(run)), n, m) for (n, m), run in groupby(pairs[i] for i in order)]
        samples = torch.tensor(order, device=self.real.device)
        return self.rows_of(samples), other.rows_of(samples), groups

    def rows_of(self, samples: Int[Tensor, " k"]) -> Int[Tensor, " t"]:
        """Packed rows of whole samples, in the order of `samples`."""
        counts = self.real.sum(1)[samples]
        shift = self.offsets[:-1][samples] - (counts.cumsum(0) - counts)
        return torch.repeat_interleave(shift, counts) + torch.arange(int(counts.sum()), device=shift.device)

    def columns(self, modality: str | None, name: str | None) -> list[int]:
        """Indices of the spans that answer to `modality` and `name` (None: any)."""
        return [i for i, s in enumerate(self.spans) if modality in (None, s.modality) and name in (None, s.name)]

    def bounds(self, span: int) -> tuple[int, int]:
        """First column of a span, and one past its last."""
        start = sum(s.length for s in self.spans[:span])
        return start, start + self.spans[span].length


_packing: ContextVar[bool | None] = ContextVar("packing", default=False)


@contextmanager
def packing(on: bool | None = None) -> Iterator[None]:
    """Within it, new Tokens are packed: models compute no pads. They give the same values at real tokens either way.

    None packs where that is faster: everywhere but on a CPU under autocast, whose bfloat16 kernels are compiled anew for
    each number of rows that comes by, which costs more time (and memory) than the pads do.
    """
    before = _packing.set(on)
    try:
        yield
    finally:
        _packing.reset(before)


def _packs(values: Tensor) -> bool:
    asked = _packing.get()
    return asked if asked is not None else values.is_cuda or not torch.is_autocast_enabled("cpu")


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of token sequences, in either layout. Immutable: every method gives new Tokens."""

    values: Float[Tensor, "b n d"] | Float[Tensor, "t d"]
    layout: Layout

    # -- making and unmaking ------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, values: Float[Tensor, "b n d"], real: Bool[Tensor, "b n"], *spans: Span) -> Tokens:
        """Tokens from a canvas, in the layout that `packing` asks for: padded outside it."""
        tokens = cls(values, Layout(real, spans))
        return tokens.pack() if _packs(values) else tokens

    @property
    def packed(self) -> bool:
        """Whether `values` holds the real rows alone."""
        return self.values.dim() == 2

    @property
    def real(self) -> Bool[Tensor, "b n"]:
        """Which cells of the canvas hold a token, in either layout."""
        return self.layout.real

    def __len__(self) -> int:
        return len(self.layout.real)

    def pack(self) -> Tokens:
        """The same tokens without pads."""
        if self.packed:
            return self
        return Tokens(self.values.flatten(0, 1).index_select(0, self.layout.flat), self.layout)

    def canvas(self) -> Float[Tensor, "b n d"]:
        """Values on the padded canvas. Padded tokens keep whatever stands at their pads; packed ones give zeros there."""
        if not self.packed:
            return self.values
        b, n = self.layout.real.shape
        blank = self.values.new_zeros(b * n, self.values.shape[1])
        return blank.index_copy(0, self.layout.flat, self.values).view(b, n, -1)

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """`function` applied to every token; it must treat the last dimension only."""
        return Tokens(function(self.values), self.layout)

    def __add__(self, other: Tokens) -> Tokens:
        if other.layout is not self.layout:
            raise ValueError("tokens of two layouts cannot be added")
        return Tokens(self.values + other.values, self.layout)

    def add(self, canvas: Float[Tensor, "*b n d"] | Float[Tensor, " d"]) -> Tokens:
        """Adds one vector to all, or what a canvas of ``(n, d)`` or ``(b, n, d)`` holds to each."""
        if canvas.dim() == 1 or not self.packed:
            return Tokens(self.values + canvas, self.layout)
        b, n = self.real.shape
        rows = canvas.expand(b, n, canvas.shape[-1]).reshape(b * n, -1).index_select(0, self.layout.flat)
        return Tokens(self.values + rows, self.layout)

    # -- algebra ------------------------------------------------------------------------------------------------------

    @staticmethod
    def join(*parts: Tokens) -> Tokens:
        """One sequence per sample, the parts in the order given. Raises ValueError where some are packed and some not."""
        if len({p.packed for p in parts}) > 1:
            raise ValueError("packed and padded tokens cannot be joined: make them under one `packing`")
        layout = Layout(torch.cat([p.layout.real for p in parts], 1), tuple(s for p in parts for s in p.layout.spans))
        if not parts[0].packed:
            return Tokens(torch.cat([p.values for p in parts], 1), layout)
        origins, offset = [], 0
        for p in parts:
            origin = torch.zeros(p.real.numel(), dtype=torch.long, device=p.real.device)
            origin[p.layout.flat] = torch.arange(offset, offset + len(p.values), device=p.real.device)
            origins.append(origin.view_as(p.real))
            offset += len(p.values)
        order = torch.cat(origins, 1).flatten()[layout.flat]
        return Tokens(torch.cat([p.values for p in parts]).index_select(0, order), layout)

    def split(self, *layouts: Layout) -> tuple[Tokens, ...]:
        """Undoes `join`: the layouts of the parts, in the order in which they were joined."""
        sizes = [x.real.shape[1] for x in layouts]
        if not self.packed:
            return tuple(Tokens(v, x) for v, x in zip(self.values.split(sizes, 1), layouts, strict=True))
        column = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(self.real.device)
        owner = column.expand_as(self.real).flatten()[self.layout.flat]
        return tuple(
            Tokens(self.values.index_select(0, (owner == i).nonzero().squeeze(1)), x) for i, x in enumerate(layouts)
        )

    def by_span(self, modality: str | None = None, name: str | None = None) -> Tokens:
        """The tokens of the spans that answer to `modality` and `name`."""
        kept = self.layout.columns(modality, name)
        if not kept:
            raise KeyError(f"no span ({modality}, {name}) among {self.layout.spans}")
        columns = torch.cat([torch.arange(*self.layout.bounds(i)) for i in kept]).to(self.real.device)
        layout = Layout(self.real[:, columns], tuple(self.layout.spans[i] for i in kept))
        if not self.packed:
            return Tokens(self.values.index_select(1, columns), layout)
        wanted = torch.zeros(self.real.shape[1], dtype=torch.bool, device=self.real.device)
        wanted[columns] = True
        rows = wanted.expand_as(self.real).flatten()[self.layout.flat].nonzero().squeeze(1)
        return Tokens(self.values.index_select(0, rows), layout)

    def first(self) -> Float[Tensor, "b d"]:
        """The first token of each sample, which must be real ([CLS] of BERT-like text, the class token of a ViT)."""
        return self.values.index_select(0, self.layout.offsets[:-1]) if self.packed else self.values[:, 0]

    def mean(self) -> Float[Tensor, "b d"]:
        """The mean over each sample's real tokens."""
        canvas = self.canvas() * self.real[:, :, None]
        return canvas.sum(1) / self.real.sum(1, keepdim=True)

    def pick(self, keep: Bool[Tensor, "b n"]) -> Tokens:
        """Only the tokens where `keep`; the rest become padding."""
        layout = Layout(self.real & keep, self.layout.spans)
        if not self.packed:
            return Tokens(self.values, layout)
        rows = keep.flatten()[self.layout.flat].nonzero().squeeze(1)
        return Tokens(self.values.index_select(0, rows), layout)

    def take(self, samples: Int[Tensor, " k"]) -> Tokens:
        """Whole samples, in the order of `samples`; one may be taken several times."""
        layout = Layout(self.real[samples], self.layout.spans)
        if not self.packed:
            return Tokens(self.values[samples], layout)
        return Tokens(self.values.index_select(0, self.layout.rows_of(samples)), layout)

    def rows(self, where: Bool[Tensor, "b n"]) -> Float[Tensor, "k d"]:
        """The values at the True cells of `where` (a subset of the real ones), sample after sample."""
        return self.pick(where).pack().values if self.packed else self.values[where]


@dataclass(frozen=True)
class Pair:
    """What fusion gives: both sides' tokens after they have met, and the summary that heads of the pair read."""

    text: Tokens
    image: Tokens
    pooled: Float[Tensor, "b d"]
