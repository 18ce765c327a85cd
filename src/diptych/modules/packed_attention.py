"""Attention over packed tokens: on a CPU in groups of samples of similar lengths, on a GPU in torch's jagged layout.

On a CPU, one copy brings the values of all heads into the order of the groups, and one copy brings the result back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diptych.modules.tokens import Layout

ADDED_CELLS = 4096  # pairs of a query and a key: computing this many in vain takes less time than another call

Mask = Callable[[int, int, torch.device], Tensor] | Tensor | None
"""Which query may attend to which key: a function of their numbers in a sample and the device, a tensor that broadcasts
to ``(b, h, n, m)`` canvas columns, or None: all."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention of query, key and value ``(b, h, l, e)`` with a mask or bias that broadcasts to ``(b, h, n, m)``, or None.
"""


class Group(NamedTuple):
    """Samples that share a call, and the most queries and keys that one of them has."""

    samples: list[int]
    queries: int
    keys: int


class Side:
    """The packed rows of the queries, or of the keys, in the order of the groups.

    They are computed on the CPU, and what indexes the values is copied to their `device`.

    Attributes:
        rows: of each group, the packed rows ``(samples, length)``; at padding, any row.
        real: of each group, where `rows` is no padding; None: everywhere.
    """

    def __init__(self, layout: Layout, groups: Sequence[Group], lengths: Sequence[int]):
        counts = torch.tensor(layout.lengths)
        first = counts.cumsum(0) - counts
        self.num_rows = int(counts.sum())
        self.rows: list[Tensor] = []
        self.real: list[Tensor | None] = []
        for group, length in zip(groups, lengths, strict=True):
            samples, column = torch.tensor(group.samples), torch.arange(length)
            inside = column < counts[samples, None]
            rows = first[samples, None] + torch.where(inside, column, 0)
            self.rows.append(rows.clamp(max=self.num_rows - 1))
            self.real.append(None if inside.all() else inside)
        self.padded = any(mask is not None for mask in self.real)
        self.device = layout.mask.device
        self._column = layout.flat % layout.mask.shape[1]
        self._by_heads: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def columns(self, group: int) -> Int[Tensor, "samples length"]:
        """The canvas columns of the rows of a group."""
        return self._column[self.rows[group].to(self.device)]

    def by_heads(self, parts: int, num_heads: int) -> tuple[Int[Tensor, " cells"], Int[Tensor, " rows"]]:
        """Indices of values split into rows of one head each, `parts` × `num_heads` of them for each token.

        Returns: from packed rows to groups, each group parts × samples × heads × length; and back.
        """
        if (parts, num_heads) not in self._by_heads:
            head = torch.arange(parts * num_heads).view(parts, 1, num_heads, 1)
            shaped = [rows[:, None] * (parts * num_heads) + head for rows in self.rows]
            order = torch.cat([x.flatten() for x in shaped])
            real = torch.cat(
                [
                    torch.ones(x.numel(), dtype=torch.bool) if mask is None else mask[:, None].expand_as(x).flatten()
                    for x, mask in zip(shaped, self.real, strict=True)
                ]
            )
            back = torch.empty(self.num_rows * parts * num_heads, dtype=torch.long)
            back[order[real]] = real.nonzero().squeeze(1)
            self._by_heads[parts, num_heads] = order.to(self.device), back.to(self.device)
        return self._by_heads[parts, num_heads]

    def to_groups(self, values: Float[Tensor, "t c"], parts: int, num_heads: int) -> list[Tensor]:
        """Packed values of `parts` (query, key and value side by side) in groups, split into heads; contiguous."""
        order, back = self.by_heads(parts, num_heads)
        rows = _Reordered.apply(values.reshape(len(back), values.shape[1] // (parts * num_heads)), order, back, False)
        sizes = [parts * r.numel() * num_heads for r in self.rows]
        return [
            x.view(parts, len(r), num_heads, r.shape[1], x.shape[1])
            for x, r in zip(cast(Tensor, rows).split(sizes), self.rows, strict=True)
        ]

    def to_packed(self, groups: Sequence[Tensor]) -> Float[Tensor, "t c"]:
        """Inverse of `to_groups` for one part."""
        order, back = self.by_heads(1, groups[0].shape[1])
        rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in groups])
        return cast(Tensor, _Reordered.apply(rows, back, order, self.padded)).view(self.num_rows, -1)


class _Reordered(torch.autograd.Function):
    """Rows by index, where every row occurs once but for padding.

    Its gradient is a selection by the inverse index, where that of `index_select` adds to zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, padded: bool) -> Tensor:
        """`padded`: whether some rows of `x` are padding, which `index` leaves out."""
        ctx.save_for_backward(index, inverse)
        ctx.padded = padded
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, inverse = ctx.saved_tensors
        (grad,) = grads
        if ctx.padded:
            blank = grad.new_zeros(len(inverse), grad.shape[1])
            return blank.index_copy_(0, index, grad), None, None, None
        return grad.index_select(0, inverse), None, None, None


class Grouping:
    """The samples of a pair of layouts in groups, each of which is one call of attention.

    `kind`: "similar" lengths, with padding up to `ADDED_CELLS` a sample; "equal" lengths; or equal "columns".
    """

    def __init__(self, query: Layout, key: Layout, kind: str):
        self.groups = _groups_of_columns(query, key) if kind == "columns" else _groups_of_lengths(query, key, kind)
        self.query = Side(query, self.groups, [g.queries for g in self.groups])
        self.key = self.query if key is query else Side(key, self.groups, [g.keys for g in self.groups])

    @classmethod
    def of(cls, query: Layout, key: Layout, kind: str) -> Grouping:
        """The grouping of two layouts, computed once for all layers."""
        kinds = query.partners.setdefault(key, {})
        if kind not in kinds:
            kinds[kind] = cls(query, key, kind)
        return kinds[kind]

    def mask(self, number: int, allowed: Mask, bias: Tensor | None) -> Tensor | None:
        """The mask or bias of group `number`, which broadcasts to ``(samples, h, queries, keys)``; None: none.

        A `bias` needs groups of equal columns.
        """
        group, real, device = self.groups[number], self.key.real[number], self.key.device
        mask = None if real is None else real[:, None, None, :].to(device)
        if callable(allowed):  # padding follows all tokens, which do not attend to it
            mask = allowed(group.queries, group.keys, device)
        elif allowed is not None:
            query, key = self.query.columns(number)[:, :, None], self.key.columns(number)[:, None]
            samples = torch.tensor(group.samples, device=device)[:, None, None]
            wide = allowed[(None,) * (3 - allowed.dim())] if allowed.dim() < 4 else allowed
            wide = wide[:, None] if wide.dim() == 3 else wide
            if len(wide) == 1:
                samples = torch.zeros_like(samples)
            part = wide[samples, :, query, key].permute(0, 3, 1, 2)
            mask = part if mask is None else mask & part
        if bias is None:
            return mask
        columns = self.query.columns(number)[0], self.key.columns(number)[0]
        part = bias.index_select(1, columns[0]).index_select(2, columns[1])
        return part if mask is None else part.masked_fill(~mask, torch.finfo(part.dtype).min)


def _groups_of_lengths(query: Layout, key: Layout, kind: str) -> list[Group]:
    pairs = [(max(n, 1), m) for n, m in zip(query.lengths, key.lengths, strict=True)]
    groups: list[Group] = []
    for sample in sorted(range(len(pairs)), key=lambda i: pairs[i]):
        n, m = pairs[sample]
        if groups:
            samples, queries, keys = groups[-1]
            wide = Group([*samples, sample], max(queries, n), max(keys, m))
            added = len(wide.samples) * wide.queries * wide.keys - len(samples) * queries * keys - n * m
            # a sample without keys has no softmax: it shares no call with samples that have some
            if (queries, keys) == (n, m) or (kind == "similar" and added <= ADDED_CELLS and keys and m):
                groups[-1] = wide
                continue
        groups.append(Group([sample], n, m))
    return groups


def _groups_of_columns(query: Layout, key: Layout) -> list[Group]:
    same: dict[tuple[bytes, bytes], list[int]] = {}
    rows = zip(query.mask.cpu().numpy(), key.mask.cpu().numpy(), strict=True)
    for sample, (a, b) in enumerate(rows):
        same.setdefault((a.tobytes(), b.tobytes()), []).append(sample)
    return [Group(samples, max(query.lengths[samples[0]], 1), key.lengths[samples[0]]) for samples in same.values()]


def attend_grouped(
    values: Sequence[Tensor], num_heads: int, query_layout: Layout, key_layout: Layout,
    allowed: Mask = None, bias: Float[Tensor, "h n m"] | None = None, *,
    kernel: Kernel,
) -> Float[Tensor, "t d"]:  # fmt: skip
    """Attention over packed tokens on a CPU: one call for each group of samples, of similar lengths.

    Args:
        values: query, key and value; or one tensor with all three side by side, for self-attention.
        allowed, bias: see `Mask`, `diptych.modules.attention.scaled_dot_product_attention`.
        kernel: computes the attention of a group.
    """
    if not sum(query_layout.lengths):
        return values[0][:, : values[0].shape[1] // (3 if len(values) == 1 else 1)]
    if allowed is None and bias is None and query_layout.full and key_layout.full:
        return _attend_full(values, num_heads, query_layout, key_layout, kernel)
    kind = "similar"
    if callable(allowed) and query_layout is not key_layout:
        kind = "equal"  # columns are right-aligned, which padding would shift
    if bias is not None:
        kind, bias = "columns", bias.to(values[0].dtype)
    grouping = Grouping.of(query_layout, key_layout, kind)
    if len(values) == 1:
        heads = [x.unbind() for x in grouping.query.to_groups(values[0], 3, num_heads)]
    else:
        sides = grouping.query, grouping.key, grouping.key
        parts = (side.to_groups(x, 1, num_heads) for side, x in zip(sides, values, strict=True))
        heads = [tuple(x[0] for x in group) for group in zip(*parts, strict=True)]
    attended = [kernel(q, k, v, grouping.mask(i, allowed, bias)) for i, (q, k, v) in enumerate(heads)]
    return grouping.query.to_packed(attended)


def _attend_full(
    values: Sequence[Tensor], num_heads: int, query_layout: Layout, key_layout: Layout, kernel: Kernel
) -> Tensor:
    """Samples without padding: packed and padded values are the same memory, and nothing is reordered."""
    (b, n), m = query_layout.mask.shape, key_layout.mask.shape[1]
    if len(values) == 1:
        q, k, v = values[0].view(b, n, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
    else:
        q, k, v = (
            x.reshape(b, length, num_heads, x.shape[1] // num_heads).transpose(1, 2)
            for x, length in zip(values, (n, m, m), strict=True)
        )
    return kernel(q, k, v, None).transpose(1, 2).reshape(b * n, -1)


def attend_jagged(
    q: Float[Tensor, "t d"], k: Float[Tensor, "u d"], v: Float[Tensor, "u d"], num_heads: int,
    query_layout: Layout, key_layout: Layout,
) -> Float[Tensor, "t d"]:  # fmt: skip
    """Attention over packed tokens on a GPU: one call in torch's jagged layout, which has fast kernels."""

    def jagged(x: Tensor, layout: Layout) -> Tensor:
        x = x.unflatten(-1, (num_heads, -1))
        longest = max(layout.lengths)
        nested = torch.nested.nested_tensor_from_jagged(x, layout.offsets, min_seqlen=1, max_seqlen=longest)
        return nested.transpose(1, 2)

    out = F.scaled_dot_product_attention(jagged(q, query_layout), jagged(k, key_layout), jagged(v, key_layout))
    return out.transpose(1, 2).values().flatten(-2)
