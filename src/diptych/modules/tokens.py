"""Tokens: a batch of token sequences, the data type in which every model of Diptych is written.

`Tokens` has two memory layouts behind the same methods, so that models do not depend on the layout:

- **padded** (the reference): ``values`` is ``(b, n, d)``, and ``mask`` is False at padding;
- **packed**: ``values`` is ``(t, d)``, the real tokens only, sample after sample: padding is never computed.

Both carry the same `Layout`, in padded geometry, so that conversion is one indexing step. Only this file,
``modules/attention.py`` and ``modules/packed_attention.py`` depend on the layout in use; a test checks that packed equals
padded.

Terms: the *canvas* is the padded ``b × n`` grid, a *cell* one position on it, a *row* one vector of packed values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_packing: ContextVar[bool] = ContextVar("packing", default=False)


@contextmanager
def packing(on: bool = True) -> Iterator[None]:
    """Context in which new Tokens are packed, so that models compute no padding. Values at real tokens are the same.

    Packed is the faster layout wherever it was measured (docs/decisions/0018-packed-attention.md).
    """
    before = _packing.set(on)
    try:
        yield
    finally:
        _packing.reset(before)


@dataclass(frozen=True)
class Span:
    """A run of columns of one kind of token. `image_index`: which of a sample's images they are of."""

    modality: str  # "text" or "image"
    name: str  # "cls", "words", "patches", "regions"
    length: int
    grid: tuple[int, int] | None = None  # rows and columns of the patch grid, raster order
    image_index: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """The padding mask of a ``b × n`` canvas (True: real token), and the spans of its columns.

    Shared between Tokens.
    """

    mask: Bool[Tensor, "b n"]
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        if sum(s.length for s in self.spans) != self.mask.shape[1]:
            raise ValueError(f"spans {self.spans} must cover the mask's {self.mask.shape[1]} columns")

    def __reduce__(self) -> tuple[type[Layout], tuple[Tensor, tuple[Span, ...]]]:
        return Layout, (self.mask, self.spans)  # copied and saved without what is computed from them

    @cached_property
    def flat(self) -> Int[Tensor, " t"]:
        """Indices of the real cells in the flattened canvas, sample after sample."""
        return self.mask.flatten().nonzero().squeeze(1)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of real tokens of each sample."""
        return self.mask.sum(1).tolist()

    @cached_property
    def full(self) -> bool:
        """Whether no cell is padding."""
        return bool(self.mask.all())

    @cached_property
    def offsets(self) -> Int[Tensor, " ends"]:
        """First packed row of each sample, and one past the last row (cumulative lengths)."""
        return F.pad(self.mask.sum(1).cumsum(0), (1, 0))

    @cached_property
    def owner(self) -> Int[Tensor, " t"]:
        """Sample index of each packed row."""
        counts = self.mask.sum(1)
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    @cached_property
    def partners(self) -> WeakKeyDictionary[Layout, dict[str, Any]]:
        """What is computed once for this layout and another, by the other layout and by name."""
        return WeakKeyDictionary()

    def rows_by_modality(self, packed: bool) -> dict[str, Int[Tensor, " k"]]:
        """Indices of each modality's rows: of the packed values, or of the flattened canvas."""
        return self._packed_rows if packed else self._padded_rows

    @cached_property
    def _padded_rows(self) -> dict[str, Tensor]:
        rows = {}
        for name in dict.fromkeys(span.modality for span in self.spans):
            columns = torch.cat([torch.full((span.length,), span.modality == name) for span in self.spans])
            rows[name] = columns.to(self.mask.device).expand_as(self.mask).flatten().nonzero().squeeze(1)
        return rows

    @cached_property
    def _packed_rows(self) -> dict[str, Tensor]:
        row = torch.zeros(self.mask.numel(), dtype=torch.long, device=self.mask.device)
        row[self.flat] = torch.arange(len(self.flat), device=row.device)
        real = self.mask.flatten()
        return {name: row[cells[real[cells]]] for name, cells in self._padded_rows.items()}

    def rows_of(self, samples: Int[Tensor, " k"]) -> Int[Tensor, " t"]:
        """Packed rows of the given samples, in the order of `samples`."""
        counts = self.mask.sum(1)[samples]
        shift = self.offsets[:-1][samples] - (counts.cumsum(0) - counts)
        return torch.repeat_interleave(shift, counts) + torch.arange(int(counts.sum()), device=shift.device)

    def columns(self, modality: str | None, name: str | None) -> list[int]:
        """Indices of the spans of this `modality` and `name` (None: any)."""
        return [i for i, s in enumerate(self.spans) if modality in (None, s.modality) and name in (None, s.name)]

    def bounds(self, span: int) -> tuple[int, int]:
        """First column of span number `span`, and one past its last."""
        start = sum(s.length for s in self.spans[:span])
        return start, start + self.spans[span].length


def check_same_samples(a: Layout, b: Layout) -> None:
    """Raises ValueError unless both layouts are of the same number of samples, so that each has its own partner."""
    if len(a.mask) != len(b.mask):
        raise ValueError(
            f"expected as many texts as images, or tokens of as many samples, got {len(a.mask)} and {len(b.mask)}: "
            "repeat or select samples first (Tokens.index_samples)"
        )


__all__ = ["FusedTokens", "Tokens", "check_same_samples", "packing"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of token sequences, in either layout. Immutable: every method returns new Tokens."""

    values: Float[Tensor, "b n d"] | Float[Tensor, "t d"]
    layout: Layout

    # -- construction and conversion ----------------------------------------------------------------------------------

    @classmethod
    def from_padded(cls, values: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], *spans: Span) -> Tokens:
        """Tokens from padded values, in the layout set by `packing` (outside of it: padded)."""
        tokens = cls(values, Layout(mask, spans))
        return tokens.pack() if _packing.get() else tokens

    @property
    def packed(self) -> bool:
        """Whether `values` is packed."""
        return self.values.dim() == 2

    @property
    def mask(self) -> Bool[Tensor, "b n"]:
        """The padding mask, True at real tokens, in either layout."""
        return self.layout.mask

    def __len__(self) -> int:
        return len(self.layout.mask)

    def pack(self) -> Tokens:
        """These tokens in the packed layout."""
        if self.packed:
            return self
        rows = self.values.flatten(0, 1)
        return Tokens(rows if self.layout.full else rows.index_select(0, self.layout.flat), self.layout)

    def to_padded(self) -> Float[Tensor, "b n d"]:
        """Padded values. Packed tokens give zeros at padding; padded tokens keep their values there."""
        canvas = self._canvas()
        if canvas is not None:
            return canvas
        b, n = self.layout.mask.shape
        blank = self.values.new_zeros(b * n, self.values.shape[1])
        return blank.index_copy(0, self.layout.flat, self.values).view(b, n, self.values.shape[1])

    def _canvas(self) -> Float[Tensor, "b n d"] | None:
        """The values as a canvas, if that needs no copy: padded ones, and packed ones of a layout without padding."""
        if not self.packed:
            return self.values
        return self.values.view(*self.mask.shape, self.values.shape[1]) if self.layout.full else None

    def _with_canvas(self, canvas: Float[Tensor, "b n d"], layout: Layout) -> Tokens:
        """Tokens of a canvas, packed if these are."""
        tokens = Tokens(canvas, layout)
        return tokens.pack() if self.packed else tokens

    @property
    def image_index(self) -> int:
        """Which of a sample's images these tokens are of. Raises ValueError for tokens of several images."""
        indices = {span.image_index for span in self.layout.spans}
        if len(indices) != 1:
            raise ValueError(f"expected tokens of one image, got tokens of images {sorted(indices)}")
        return indices.pop()

    def with_image_index(self, image_index: int) -> Tokens:
        """These tokens, marked as those of the sample's image number `image_index`."""
        spans = tuple(replace(span, image_index=image_index) for span in self.layout.spans)
        return Tokens(self.values, Layout(self.layout.mask, spans))

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """`function` applied to every token; it must act on the last dimension only."""
        return Tokens(function(self.values), self.layout)

    def map_each(self, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Tokens:
        """Tokens with one function per modality applied, by its name (see `map`)."""
        modalities = {span.modality for span in self.layout.spans}
        if len(modalities) == 1:
            return self.map(functions[modalities.pop()])
        rows = self.layout.rows_by_modality(self.packed)
        flat = self.values.flatten(0, -2)
        parts = [functions[name](flat.index_select(0, indices)) for name, indices in rows.items()]
        inverse = torch.cat(list(rows.values())).argsort()
        return Tokens(torch.cat(parts).index_select(0, inverse).view(*self.values.shape[:-1], -1), self.layout)

    def scale(self, factors: Float[Tensor, " b"]) -> Tokens:
        """Tokens times one factor per sample."""
        per_token = factors[self.layout.owner][:, None] if self.packed else factors[:, None, None]
        return Tokens(self.values * per_token, self.layout)

    def __add__(self, other: Tokens) -> Tokens:
        if other.layout is not self.layout:
            raise ValueError("tokens can only be added to tokens with the same Layout object")
        return Tokens(self.values + other.values, self.layout)

    def add(self, canvas: Float[Tensor, "*b n d"] | Float[Tensor, " d"]) -> Tokens:
        """Tokens plus one vector ``(d,)``, or plus padded values ``(n, d)`` or ``(b, n, d)``."""
        if canvas.dim() == 1 or not self.packed:
            return Tokens(self.values + canvas, self.layout)
        own = self._canvas()
        if own is not None:
            return self._with_canvas(own + canvas, self.layout)
        b, n = self.mask.shape
        rows = canvas.expand(b, n, canvas.shape[-1]).reshape(b * n, -1).index_select(0, self.layout.flat)
        return Tokens(self.values + rows, self.layout)

    # -- algebra ------------------------------------------------------------------------------------------------------

    @staticmethod
    def concat(*parts: Tokens) -> Tokens:
        """Concatenation along the sequence, in the order of `parts`.

        Raises ValueError for packed next to padded parts, and for parts of different numbers of samples.
        """
        if len({p.packed for p in parts}) > 1:
            raise ValueError("cannot concatenate packed and padded tokens: create both within the same `packing`")
        for part in parts[1:]:
            check_same_samples(parts[0].layout, part.layout)
        layout = Layout(torch.cat([p.layout.mask for p in parts], 1), tuple(s for p in parts for s in p.layout.spans))
        canvases = [p._canvas() for p in parts]
        if all(canvas is not None for canvas in canvases):
            return parts[0]._with_canvas(torch.cat([c for c in canvases if c is not None], 1), layout)
        origins, offset = [], 0
        for p in parts:
            origin = torch.zeros(p.mask.numel(), dtype=torch.long, device=p.mask.device)
            origin[p.layout.flat] = torch.arange(offset, offset + len(p.values), device=p.mask.device)
            origins.append(origin.view_as(p.mask))
            offset += len(p.values)
        order = torch.cat(origins, 1).flatten()[layout.flat]
        return Tokens(torch.cat([p.values for p in parts]).index_select(0, order), layout)

    @staticmethod
    def concat_samples(*parts: Tokens) -> Tokens:
        """The samples of all parts, one part after the other; each span is padded to its longest.

        Raises ValueError for parts with different spans, and for packed next to padded parts.
        """
        if len(parts) == 1:
            return parts[0]
        kinds = {tuple((s.modality, s.name, s.grid, s.image_index) for s in p.layout.spans) for p in parts}
        if len({p.packed for p in parts}) > 1 or len(kinds) > 1:
            raise ValueError(
                f"expected samples with the same spans, all packed or all padded, got spans {sorted(kinds, key=str)}"
            )
        spans = tuple(max(same, key=lambda s: s.length) for same in zip(*(p.layout.spans for p in parts), strict=True))

        def widened(x: Tensor, layout: Layout) -> Tensor:
            columns = x.split([s.length for s in layout.spans], 1)
            missing = [s.length - own.length for s, own in zip(spans, layout.spans, strict=True)]
            pads = ((0,) * (2 * (x.dim() - 2)) + (0, m) for m in missing)
            return torch.cat([F.pad(c, pad) for c, pad in zip(columns, pads, strict=True)], 1)

        layout = Layout(torch.cat([widened(p.layout.mask, p.layout) for p in parts]), spans)
        return Tokens(torch.cat([p.values if p.packed else widened(p.values, p.layout) for p in parts]), layout)

    def split(self, *layouts: Layout) -> tuple[Tokens, ...]:
        """Inverse of `concat`; `layouts` are those of the parts, in the same order."""
        sizes = [x.mask.shape[1] for x in layouts]
        canvas = self._canvas()
        if canvas is not None:
            return tuple(self._with_canvas(v, x) for v, x in zip(canvas.split(sizes, 1), layouts, strict=True))
        column = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(self.mask.device)
        owner = column.expand_as(self.mask).flatten()[self.layout.flat]
        return tuple(
            Tokens(self.values.index_select(0, (owner == i).nonzero().squeeze(1)), x) for i, x in enumerate(layouts)
        )

    def select(self, modality: str | None = None, name: str | None = None) -> Tokens:
        """The tokens of the spans of this `modality` and `name` (None: any). Raises KeyError if there are none."""
        spans = self.layout.columns(modality, name)
        if not spans:
            raise KeyError(f"no span with modality {modality!r} and name {name!r} among {self.layout.spans}")
        columns = torch.cat([torch.arange(*self.layout.bounds(i)) for i in spans]).to(self.mask.device)
        layout = Layout(self.mask[:, columns], tuple(self.layout.spans[i] for i in spans))
        canvas = self._canvas()
        if canvas is not None:
            return self._with_canvas(canvas.index_select(1, columns), layout)
        selected = torch.zeros(self.mask.shape[1], dtype=torch.bool, device=self.mask.device)
        selected[columns] = True
        rows = selected.expand_as(self.mask).flatten()[self.layout.flat].nonzero().squeeze(1)
        return Tokens(self.values.index_select(0, rows), layout)

    def first(self) -> Float[Tensor, "b d"]:
        """The first token of each sample, which must be real ([CLS] of BERT-like text, the class token of a ViT)."""
        canvas = self._canvas()
        return self.values.index_select(0, self.layout.offsets[:-1]) if canvas is None else canvas[:, 0]

    def mean(self) -> Float[Tensor, "b d"]:
        """The mean of each sample's real tokens."""
        canvas = self.to_padded() * self.mask[:, :, None]
        return canvas.sum(1) / self.mask.sum(1, keepdim=True)

    def apply_mask(self, keep: Bool[Tensor, "b n"]) -> Tokens:
        """The tokens where `keep` is True; the others become padding."""
        layout = Layout(self.mask & keep, self.layout.spans)
        if not self.packed:
            return Tokens(self.values, layout)
        rows = keep.flatten()[self.layout.flat].nonzero().squeeze(1)
        return Tokens(self.values.index_select(0, rows), layout)

    def index_samples(self, samples: Int[Tensor, " k"]) -> Tokens:
        """Samples by index, in the order of `samples`; an index may occur several times."""
        layout = Layout(self.mask[samples], self.layout.spans)
        canvas = self._canvas()
        if canvas is not None:
            return self._with_canvas(canvas.index_select(0, samples), layout)
        return Tokens(self.values.index_select(0, self.layout.rows_of(samples)), layout)

    def gather(self, where: Bool[Tensor, "b n"]) -> Float[Tensor, "k d"]:
        """The values where `where` is True (a subset of the mask), sample after sample."""
        canvas = self._canvas()
        return self.apply_mask(where).values if canvas is None else canvas[where]


@dataclass(frozen=True)
class FusedTokens:
    """The output of fusion: the tokens of both modalities, and the pooled vector that pair-level heads take."""

    text: Tokens
    image: Tokens
    pooled: Float[Tensor, "b d"]
