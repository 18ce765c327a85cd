"""Rows of all ranks: what a loss that compares samples with one another needs where a batch is spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

from diptych.modules.tokens import Layout, Span, Tokens

_each = ContextVar("each rank by itself", default=False)


@contextmanager
def without_gathering() -> Iterator[None]:
    """Within, each rank's batch is a whole batch: it is compared with no other's."""
    before = _each.set(True)
    try:
        yield
    finally:
        _each.reset(before)


def single_process() -> bool:
    """Whether there is one process, or each is by itself."""
    return _each.get() or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1


def all_gather(rows: Shaped[Tensor, "b *d"]) -> tuple[Shaped[Tensor, "all *d"], int]:
    """Every rank's rows, by rank, and where this rank's own begin. Gradients flow back to the rank that made a row.

    Ranks may hold different numbers of rows. In one process these are the rows themselves.
    """
    if single_process():
        return rows, 0
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    lengths = [int(count) for count in counts]
    most = max(lengths)
    canvas = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    parts: Any = _Gather.apply(canvas)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]), sum(lengths[: dist.get_rank()])


def all_gather_tokens(tokens: Tokens) -> tuple[Tokens, int]:
    """Every rank's samples as tokens on one canvas, which holds the longest text and the largest image of any rank; and
    where this rank's own begin. Gradients flow back as in `gathered`.
    """
    if single_process():
        return tokens, 0
    spans = tuple(_widest(span, tokens.mask.device) for span in tokens.layout.spans)
    canvas, real = (_spread(x, tokens.layout.spans, spans) for x in (tokens.to_padded(), tokens.mask))
    (values, first), (real, _) = all_gather(canvas), all_gather(real.to(torch.uint8))
    everyone = Tokens(values, Layout(real.bool(), spans))
    return everyone.pack() if tokens.packed else everyone, first


def _widest(span: Span, device: torch.device) -> Span:
    """The span as the rank has it whose canvas is the largest."""
    sizes, _ = all_gather(torch.tensor([[span.length, *(span.grid or (0, 0))]], device=device))
    length, rows, columns = sizes.amax(0).tolist()
    if span.grid is None:
        return replace(span, length=length)
    return replace(span, length=rows * columns, grid=(rows, columns))


def _spread(x: Shaped[Tensor, "b n *d"], now: tuple[Span, ...], then: tuple[Span, ...]) -> Shaped[Tensor, "b m *d"]:
    """What lies on a canvas of some spans, on one of larger spans: patches keep their rows and columns."""
    parts = []
    behind = (0, 0) * (x.dim() - 2)
    for part, old, new in zip(x.split([span.length for span in now], 1), now, then, strict=True):
        if old.grid is None or new.grid is None:
            parts.append(F.pad(part, (*behind, 0, new.length - old.length)))
        else:
            more = (*behind, 0, new.grid[1] - old.grid[1], 0, new.grid[0] - old.grid[0])
            parts.append(F.pad(part.unflatten(1, old.grid), more).flatten(1, 2))
    return torch.cat(parts, 1)


class _Gather(torch.autograd.Function):
    """all_gather whose backward gives each rank the sum of the gradients that all ranks have for its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        stacked = torch.stack(gradients)
        dist.all_reduce(stacked)
        return stacked[dist.get_rank()]
