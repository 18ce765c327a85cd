"""Relative position bias: one table row for each relative position of two tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.modules.position import RelativePositions
from diptych.modules.tokens import Layout, Span

LAYERS, HEADS, GRID, LENGTH = 3, 2, (2, 3), 5


def positions() -> RelativePositions:
    module = RelativePositions(LAYERS, HEADS, GRID, LENGTH)
    module.table.data = torch.randn(module.table.shape, generator=torch.Generator().manual_seed(0))
    return module


def layout(*spans: Span, b: int = 2) -> Layout:
    return Layout(torch.ones(b, sum(s.length for s in spans), dtype=torch.bool), spans)


def text(n: int = 4) -> tuple[Span, Span]:
    return Span("text", "cls", 1), Span("text", "words", n)


def image(rows: int = 2, columns: int = 3) -> tuple[Span, Span]:
    return Span("image", "cls", 1), Span("image", "patches", rows * columns, grid=(rows, columns))


def by_loop(table: Tensor, query: tuple, key: tuple) -> Tensor:
    """The bias of a query and a key token, by the official order of table rows.

    A token is (modality, position), with position None for the class token.
    """
    (rows, columns), patches = GRID, 15
    words = patches + 5
    (a, i), (b, j) = query, key
    if a != b:
        return table[patches + (3 if a == "text" else 4)]
    first_cls = patches if a == "image" else words + 2 * LENGTH - 3
    if i is None or j is None:
        return table[first_cls + (2 if i is None and j is None else 0 if i is None else 1)]
    if a == "text":
        return table[words + (j - i) + LENGTH - 2]
    down, right = i[0] - j[0] + rows - 1, i[1] - j[1] + columns - 1
    return table[down * (2 * columns - 1) + right]


def test_every_pair_uses_its_table_row_and_every_layer_and_head_its_column():
    module = positions()
    tokens = [("text", None), *(("text", i) for i in range(4))]
    tokens += [("image", None), *(("image", (r, c)) for r in range(2) for c in range(3))]
    biases = torch.stack(module(layout(*text(), *image())))
    expected = torch.stack([torch.stack([by_loop(module.table, a, b) for b in tokens]) for a in tokens])
    assert torch.equal(biases, expected.permute(2, 0, 1).unflatten(0, (LAYERS, HEADS)))
    rows = {tuple(row.tolist()) for row in biases.flatten(0, 1).flatten(1).T}
    assert len(rows) == len(module.table), "a table row is not used"


def test_the_bias_of_one_modality_is_a_block_of_the_fused_bias():
    module = positions()
    both = module(layout(*text(), *image()))
    for spans, columns in ((text(), slice(0, 5)), (image(), slice(5, 12))):
        for unimodal, fused in zip(module(layout(*spans)), both, strict=True):
            assert torch.equal(unimodal, fused[:, columns, columns])


def test_padding_may_exceed_the_grid_but_an_image_may_not():
    module = positions()
    wide = layout(*image(3, 4))
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[:, 1:] = (torch.arange(12) % 4 < 3) & (torch.arange(12) < 8)
    padded = module(Layout(mask, wide.spans))
    inside = [0, 1, 2, 3, 5, 6, 7]
    for a, b in zip(padded, module(layout(*image())), strict=True):
        assert torch.equal(a[:, inside][:, :, inside], b)
    with pytest.raises(ValueError, match="image of more than the 2 × 3 patches"):
        module(wide)


def test_a_text_longer_than_the_table_raises_an_error():
    with pytest.raises(ValueError, match="text of 6 tokens, but the model has positions for 5"):
        positions()(layout(*text(5)))
