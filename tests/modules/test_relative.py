"""Relative positions: a row of the table for each way in which two tokens can stand to each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.modules.position import RelativePositions
from diptych.modules.tokens import Layout, Span

LAYERS, HEADS, GRID, LENGTH = 3, 2, (2, 3), 5


def positions() -> RelativePositions:
    made = RelativePositions(LAYERS, HEADS, GRID, LENGTH)
    made.table.data = torch.randn(made.table.shape, generator=torch.Generator().manual_seed(0))
    return made


def layout(*spans: Span, b: int = 2) -> Layout:
    return Layout(torch.ones(b, sum(s.length for s in spans), dtype=torch.bool), spans)


def text(n: int = 4) -> tuple[Span, Span]:
    return Span("text", "cls", 1), Span("text", "words", n)


def image(rows: int = 2, columns: int = 3) -> tuple[Span, Span]:
    return Span("image", "cls", 1), Span("image", "patches", rows * columns, grid=(rows, columns))


def by_loop(table: Tensor, asking: tuple, asked: tuple) -> Tensor:
    """The bias of two tokens, written down from the official order of rows; a token is (modality, place), None the class."""
    (rows, columns), patches = GRID, 15
    words = patches + 5
    (a, i), (b, j) = asking, asked
    if a != b:
        return table[patches + (3 if a == "text" else 4)]
    first_cls = patches if a == "image" else words + 2 * LENGTH - 3
    if i is None or j is None:
        return table[first_cls + (2 if i is None and j is None else 0 if i is None else 1)]
    if a == "text":
        return table[words + (j - i) + LENGTH - 2]
    down, right = i[0] - j[0] + rows - 1, i[1] - j[1] + columns - 1
    return table[down * (2 * columns - 1) + right]


def test_every_pair_reads_its_row_and_every_layer_and_head_its_column():
    made = positions()
    tokens = [("text", None), *(("text", i) for i in range(4))]
    tokens += [("image", None), *(("image", (r, c)) for r in range(2) for c in range(3))]
    found = torch.stack(made(layout(*text(), *image())))
    wanted = torch.stack([torch.stack([by_loop(made.table, a, b) for b in tokens]) for a in tokens])
    assert torch.equal(found, wanted.permute(2, 0, 1).unflatten(0, (LAYERS, HEADS)))
    rows = {tuple(row.tolist()) for row in found.flatten(0, 1).flatten(1).T}
    assert len(rows) == len(made.table), "a row that nobody reads"


def test_one_modality_alone_is_a_corner_of_both():
    made = positions()
    both = made(layout(*text(), *image()))
    for alone, corner in ((text(), slice(0, 5)), (image(), slice(5, 12))):
        for part, whole in zip(made(layout(*alone)), both, strict=True):
            assert torch.equal(part, whole[:, corner, corner])


def test_a_canvas_may_be_larger_than_the_grid_but_not_a_picture():
    made = positions()
    wide = layout(*image(3, 4))
    real = torch.ones(2, 13, dtype=torch.bool)
    real[:, 1:] = (torch.arange(12) % 4 < 3) & (torch.arange(12) < 8)
    padded = made(Layout(real, wide.spans))
    inside = [0, 1, 2, 3, 5, 6, 7]
    for a, b in zip(padded, made(layout(*image())), strict=True):
        assert torch.equal(a[:, inside][:, :, inside], b)
    with pytest.raises(ValueError, match="image of more than 2 × 3 patches"):
        made(wide)


def test_a_text_longer_than_its_positions_is_refused():
    with pytest.raises(ValueError, match="text of 6 tokens, but the model has positions for 5"):
        positions()(layout(*text(5)))
