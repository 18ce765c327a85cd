"""Gathering of tensors and tokens from all ranks, with gradients, for losses over the global batch."""

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

_disabled = ContextVar("gathering disabled", default=False)


@contextmanager
def without_gathering() -> Iterator[None]:
    """Context without gathering: each rank's batch is treated as a global batch."""
    before = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(before)


def single_process() -> bool:
    """Whether there is one process, or gathering is disabled."""
    return _disabled.get() or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1


def all_gather(rows: Shaped[Tensor, "b *d"]) -> tuple[Shaped[Tensor, "all *d"], int]:
    """The rows of all ranks, rank by rank, and the index of this rank's first. Gradients flow back to a row's rank.

    Ranks may have different numbers of rows. With one process, returns `rows` itself.
    """
    if single_process():
        return rows, 0
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    lengths = [int(count) for count in counts]
    padded = torch.cat([rows, rows.new_zeros(max(lengths) - len(rows), *rows.shape[1:])])
    parts: Any = _Gather.apply(padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]), sum(lengths[: dist.get_rank()])


def all_gather_tokens(tokens: Tokens) -> tuple[Tokens, int]:
    """The samples of all ranks, padded to the longest text and the largest image, and the index of this rank's first.

    Gradients flow back as in `all_gather`.
    """
    if single_process():
        return tokens, 0
    spans = tuple(_widest(span, tokens.mask.device) for span in tokens.layout.spans)
    padded, mask = (_pad_spans(x, tokens.layout.spans, spans) for x in (tokens.to_padded(), tokens.mask))
    (values, first), (mask, _) = all_gather(padded), all_gather(mask.to(torch.uint8))
    gathered = Tokens(values, Layout(mask.bool(), spans))
    return gathered.pack() if tokens.packed else gathered, first


def _widest(span: Span, device: torch.device) -> Span:
    """The span with the largest length and grid of any rank."""
    sizes, _ = all_gather(torch.tensor([[span.length, *(span.grid or (0, 0))]], device=device))
    length, rows, columns = sizes.amax(0).tolist()
    if span.grid is None:
        return replace(span, length=length)
    return replace(span, length=rows * columns, grid=(rows, columns))


def _pad_spans(x: Shaped[Tensor, "b n *d"], spans: tuple[Span, ...], larger: tuple[Span, ...]) -> Tensor:
    """Padded values of `spans`, padded further to the `larger` spans (b, m, *d); patches keep their row and column."""
    parts = []
    last_dims = (0, 0) * (x.dim() - 2)
    for part, old, new in zip(x.split([span.length for span in spans], 1), spans, larger, strict=True):
        if old.grid is None or new.grid is None:
            parts.append(F.pad(part, (*last_dims, 0, new.length - old.length)))
        else:
            padding = (*last_dims, 0, new.grid[1] - old.grid[1], 0, new.grid[0] - old.grid[0])
            parts.append(F.pad(part.unflatten(1, old.grid), padding).flatten(1, 2))
    return torch.cat(parts, 1)


class _Gather(torch.autograd.Function):
    """all_gather with a gradient: each rank gets the sum of all ranks' gradients of its rows."""

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
