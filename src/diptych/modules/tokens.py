"""Where tokens lie: which cells of a canvas are real and what its columns mean, in either of the two layouts of tokens.py.

Tokens: the one algebra in which every model of Diptych is written.

A model never sees how tokens lie in memory. `Tokens` has two layouts behind the same methods:

- **padded** (the reference): ``values`` is ``(b, n, d)``, and ``real`` says which cells hold something;
- **packed**: ``values`` is ``(t, d)``, the real rows only, sample after sample: no pad is ever computed.

Both carry the same `Layout`, in padded geometry, so that turning one into the other is one indexing step. Only this
file and ``layers/attention.py`` know which layout is in use; a test holds packed equal to padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

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


def packs(values: Tensor) -> bool:
    """Whether new Tokens of these values are packed."""
    asked = _packing.get()
    return asked if asked is not None else values.is_cuda or not torch.is_autocast_enabled("cpu")


@dataclass(frozen=True)
class Span:
    """A run of columns with one meaning. `slot` tells several images of one sample apart."""

    modality: str  # "text" or "image"
    name: str  # "cls", "words", "patches", "regions"
    length: int
    grid: tuple[int, int] | None = None  # rows and columns of the patch canvas, raster order
    image_index: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """Which cells of a ``b × n`` canvas are real, and what its columns mean. Shared by all tokens of one shape."""

    mask: Bool[Tensor, "b n"]
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        if sum(s.length for s in self.spans) != self.mask.shape[1]:
            raise ValueError(f"spans {self.spans} do not cover {self.mask.shape[1]} columns")

    @cached_property
    def flat(self) -> Int[Tensor, " t"]:
        """Indices of the real cells in the flattened canvas: row by row, so sample after sample."""
        return self.mask.flatten().nonzero().squeeze(1)

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each sample."""
        return self.mask.sum(1).tolist()

    @cached_property
    def full(self) -> bool:
        """Whether no cell is padding."""
        return bool(self.mask.all())

    @cached_property
    def offsets(self) -> Int[Tensor, " ends"]:
        """Packed row at which each sample begins, and one past the last row."""
        return F.pad(self.mask.sum(1).cumsum(0), (1, 0))

    @cached_property
    def owner(self) -> Int[Tensor, " t"]:
        """The sample of each packed row."""
        counts = self.mask.sum(1)
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def rows_by_modality(self, packed: bool) -> dict[str, Int[Tensor, " k"]]:
        """Rows of each modality: of the packed values, or of the canvas, flattened."""
        return self._packed_rows if packed else self._padded_rows

    @cached_property
    def _padded_rows(self) -> dict[str, Tensor]:
        rows = {}
        for name in dict.fromkeys(span.modality for span in self.spans):
            mine = torch.cat([torch.full((span.length,), span.modality == name) for span in self.spans])
            rows[name] = mine.to(self.mask.device).expand_as(self.mask).flatten().nonzero().squeeze(1)
        return rows

    @cached_property
    def _packed_rows(self) -> dict[str, Tensor]:
        row = torch.zeros(self.mask.numel(), dtype=torch.long, device=self.mask.device)
        row[self.flat] = torch.arange(len(self.flat), device=row.device)
        real = self.mask.flatten()
        return {name: row[cells[real[cells]]] for name, cells in self._padded_rows.items()}

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
        samples = torch.tensor(order, device=self.mask.device)
        return self.rows_of(samples), other.rows_of(samples), groups

    def rows_of(self, samples: Int[Tensor, " k"]) -> Int[Tensor, " t"]:
        """Packed rows of whole samples, in the order of `samples`."""
        counts = self.mask.sum(1)[samples]
        shift = self.offsets[:-1][samples] - (counts.cumsum(0) - counts)
        return torch.repeat_interleave(shift, counts) + torch.arange(int(counts.sum()), device=shift.device)

    def columns(self, modality: str | None, name: str | None) -> list[int]:
        """Indices of the spans that answer to `modality` and `name` (None: any)."""
        return [i for i, s in enumerate(self.spans) if modality in (None, s.modality) and name in (None, s.name)]

    def bounds(self, span: int) -> tuple[int, int]:
        """First column of a span, and one past its last."""
        start = sum(s.length for s in self.spans[:span])
        return start, start + self.spans[span].length


__all__ = ["FusedTokens", "Tokens", "packing"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of token sequences, in either layout. Immutable: every method gives new Tokens."""

    values: Float[Tensor, "b n d"] | Float[Tensor, "t d"]
    layout: Layout

    # -- making and unmaking ------------------------------------------------------------------------------------------

    @classmethod
    def from_padded(cls, values: Float[Tensor, "b n d"], real: Bool[Tensor, "b n"], *spans: Span) -> Tokens:
        """Tokens from a canvas, in the layout that `packing` asks for: padded outside it."""
        tokens = cls(values, Layout(real, spans))
        return tokens.pack() if packs(values) else tokens

    @property
    def packed(self) -> bool:
        """Whether `values` holds the real rows alone."""
        return self.values.dim() == 2

    @property
    def mask(self) -> Bool[Tensor, "b n"]:
        """Which cells of the canvas hold a token, in either layout."""
        return self.layout.mask

    def __len__(self) -> int:
        return len(self.layout.mask)

    def pack(self) -> Tokens:
        """The same tokens without pads."""
        if self.packed:
            return self
        return Tokens(self.values.flatten(0, 1).index_select(0, self.layout.flat), self.layout)

    def to_padded(self) -> Float[Tensor, "b n d"]:
        """Values on the padded canvas. Padded tokens keep whatever stands at their pads; packed ones give zeros there."""
        if not self.packed:
            return self.values
        b, n = self.layout.mask.shape
        blank = self.values.new_zeros(b * n, self.values.shape[1])
        return blank.index_copy(0, self.layout.flat, self.values).view(b, n, -1)

    @property
    def image_index(self) -> int:
        """Which of a sample's images these tokens are of. Raises ValueError where they are of several."""
        slots = {span.image_index for span in self.layout.spans}
        if len(slots) != 1:
            raise ValueError(f"tokens of several slots: {sorted(slots)}")
        return slots.pop()

    def with_image_index(self, slot: int) -> Tokens:
        """The same tokens as those of the sample's image number `slot`."""
        spans = tuple(replace(span, image_index=slot) for span in self.layout.spans)
        return Tokens(self.values, Layout(self.layout.mask, spans))

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """`function` applied to every token; it must treat the last dimension only."""
        return Tokens(function(self.values), self.layout)

    def map_each(self, functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Tokens:
        """Each modality's tokens by the function of its name, as `map`."""
        modalities = {span.modality for span in self.layout.spans}
        if len(modalities) == 1:
            return self.map(functions[modalities.pop()])
        rows = self.layout.rows_by_modality(self.packed)
        flat = self.values.flatten(0, -2)
        parts = [functions[name](flat.index_select(0, where)) for name, where in rows.items()]
        back = torch.cat(list(rows.values())).argsort()
        return Tokens(torch.cat(parts).index_select(0, back).view(*self.values.shape[:-1], -1), self.layout)

    def scale(self, factors: Float[Tensor, " b"]) -> Tokens:
        """Each sample's tokens times its own factor."""
        each = factors[self.layout.owner][:, None] if self.packed else factors[:, None, None]
        return Tokens(self.values * each, self.layout)

    def __add__(self, other: Tokens) -> Tokens:
        if other.layout is not self.layout:
            raise ValueError("tokens of two layouts cannot be added")
        return Tokens(self.values + other.values, self.layout)

    def add(self, canvas: Float[Tensor, "*b n d"] | Float[Tensor, " d"]) -> Tokens:
        """Adds one vector to all, or what a canvas of ``(n, d)`` or ``(b, n, d)`` holds to each."""
        if canvas.dim() == 1 or not self.packed:
            return Tokens(self.values + canvas, self.layout)
        b, n = self.mask.shape
        rows = canvas.expand(b, n, canvas.shape[-1]).reshape(b * n, -1).index_select(0, self.layout.flat)
        return Tokens(self.values + rows, self.layout)

    # -- algebra ------------------------------------------------------------------------------------------------------

    @staticmethod
    def concat(*parts: Tokens) -> Tokens:
        """One sequence per sample, the parts in the order given. Raises ValueError where some are packed and some not."""
        if len({p.packed for p in parts}) > 1:
            raise ValueError("packed and padded tokens cannot be joined: make them under one `packing`")
        layout = Layout(torch.cat([p.layout.mask for p in parts], 1), tuple(s for p in parts for s in p.layout.spans))
        if not parts[0].packed:
            return Tokens(torch.cat([p.values for p in parts], 1), layout)
        origins, offset = [], 0
        for p in parts:
            origin = torch.zeros(p.mask.numel(), dtype=torch.long, device=p.mask.device)
            origin[p.layout.flat] = torch.arange(offset, offset + len(p.values), device=p.mask.device)
            origins.append(origin.view_as(p.mask))
            offset += len(p.values)
        order = torch.cat(origins, 1).flatten()[layout.flat]
        return Tokens(torch.cat([p.values for p in parts]).index_select(0, order), layout)

    def split(self, *layouts: Layout) -> tuple[Tokens, ...]:
        """Undoes `join`: the layouts of the parts, in the order in which they were joined."""
        sizes = [x.mask.shape[1] for x in layouts]
        if not self.packed:
            return tuple(Tokens(v, x) for v, x in zip(self.values.split(sizes, 1), layouts, strict=True))
        column = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(self.mask.device)
        owner = column.expand_as(self.mask).flatten()[self.layout.flat]
        return tuple(
            Tokens(self.values.index_select(0, (owner == i).nonzero().squeeze(1)), x) for i, x in enumerate(layouts)
        )

    def select(self, modality: str | None = None, name: str | None = None) -> Tokens:
        """The tokens of the spans that answer to `modality` and `name`."""
        kept = self.layout.columns(modality, name)
        if not kept:
            raise KeyError(f"no span ({modality}, {name}) among {self.layout.spans}")
        columns = torch.cat([torch.arange(*self.layout.bounds(i)) for i in kept]).to(self.mask.device)
        layout = Layout(self.mask[:, columns], tuple(self.layout.spans[i] for i in kept))
        if not self.packed:
            return Tokens(self.values.index_select(1, columns), layout)
        wanted = torch.zeros(self.mask.shape[1], dtype=torch.bool, device=self.mask.device)
        wanted[columns] = True
        rows = wanted.expand_as(self.mask).flatten()[self.layout.flat].nonzero().squeeze(1)
        return Tokens(self.values.index_select(0, rows), layout)

    def first(self) -> Float[Tensor, "b d"]:
        """The first token of each sample, which must be real ([CLS] of BERT-like text, the class token of a ViT)."""
        return self.values.index_select(0, self.layout.offsets[:-1]) if self.packed else self.values[:, 0]

    def mean(self) -> Float[Tensor, "b d"]:
        """The mean over each sample's real tokens."""
        canvas = self.to_padded() * self.mask[:, :, None]
        return canvas.sum(1) / self.mask.sum(1, keepdim=True)

    def apply_mask(self, keep: Bool[Tensor, "b n"]) -> Tokens:
        """Only the tokens where `keep`; the rest become padding."""
        layout = Layout(self.mask & keep, self.layout.spans)
        if not self.packed:
            return Tokens(self.values, layout)
        rows = keep.flatten()[self.layout.flat].nonzero().squeeze(1)
        return Tokens(self.values.index_select(0, rows), layout)

    def index_samples(self, samples: Int[Tensor, " k"]) -> Tokens:
        """Whole samples, in the order of `samples`; one may be taken several times."""
        layout = Layout(self.mask[samples], self.layout.spans)
        if not self.packed:
            return Tokens(self.values[samples], layout)
        return Tokens(self.values.index_select(0, self.layout.rows_of(samples)), layout)

    def gather(self, where: Bool[Tensor, "b n"]) -> Float[Tensor, "k d"]:
        """The values at the True cells of `where` (a subset of the real ones), sample after sample."""
        return self.apply_mask(where).pack().values if self.packed else self.values[where]


@dataclass(frozen=True)
class FusedTokens:
    """What fusion gives: both sides' tokens after they have met, and the summary that heads of the pair read."""

    text: Tokens
    image: Tokens
    pooled: Float[Tensor, "b d"]
