"""Where tokens lie: which cells of a canvas are real and what its columns mean, in either of the two layouts of tokens.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
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

    @cached_property
    def owner(self) -> Int[Tensor, " t"]:
        """The sample of each packed row."""
        counts = self.real.sum(1)
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def rows_by_modality(self, packed: bool) -> dict[str, Int[Tensor, " k"]]:
        """Rows of each modality: of the packed values, or of the canvas, flattened."""
        return self._packed_rows if packed else self._canvas_rows

    @cached_property
    def _canvas_rows(self) -> dict[str, Tensor]:
        rows = {}
        for name in dict.fromkeys(span.modality for span in self.spans):
            mine = torch.cat([torch.full((span.length,), span.modality == name) for span in self.spans])
            rows[name] = mine.to(self.real.device).expand_as(self.real).flatten().nonzero().squeeze(1)
        return rows

    @cached_property
    def _packed_rows(self) -> dict[str, Tensor]:
        row = torch.zeros(self.real.numel(), dtype=torch.long, device=self.real.device)
        row[self.flat] = torch.arange(len(self.flat), device=row.device)
        real = self.real.flatten()
        return {name: row[cells[real[cells]]] for name, cells in self._canvas_rows.items()}

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
