"""Interpolation of position grids, as in each family of papers, per image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diptych.modules.position import resize_aligned, resize_bicubic, resize_bilinear, resize_grid_per_sample

RESIZES = (resize_aligned, resize_bicubic, resize_bilinear)


def ramp(rows: int, columns: int) -> torch.Tensor:
    """A grid (rows, columns, 2) of each cell's row and column, both from 0 to 1."""
    r, c = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    return torch.stack([r, c], 2)


@pytest.mark.parametrize("resize", RESIZES)
def test_resizing_to_the_same_size_returns_the_grid_itself(resize):
    grid = torch.randn(3, 4, 2)
    assert resize(grid, 3, 4) is grid


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 6), (5, 3)])
def test_a_constant_grid_stays_constant_and_equal_columns_stay_equal(resize, shape: tuple[int, int]):
    torch.testing.assert_close(resize(torch.full((3, 4, 2), 0.7), *shape), torch.full((*shape, 2), 0.7))
    rows_only = torch.arange(3.0)[:, None, None].expand(3, 4, 1)
    resized = resize(rows_only, *shape)
    torch.testing.assert_close(resized, resized[:, :1].expand_as(resized))


def test_aligned_corners_keep_a_ramp_exactly():
    torch.testing.assert_close(resize_aligned(ramp(3, 4), 7, 9), ramp(7, 9))
    assert not torch.allclose(resize_bilinear(ramp(3, 4), 7, 9), ramp(7, 9))


def test_each_image_gets_the_grid_resized_to_its_extent_and_padded():
    grid = torch.randn(3, 4, 2, dtype=torch.float64)
    extents = [(2, 5), (3, 4), (1, 1), (2, 5)]
    padded = resize_grid_per_sample(grid, torch.tensor(extents), 4, 5, resize_aligned).unflatten(1, (4, 5))
    for canvas, (h, w) in zip(padded, extents, strict=True):
        expected = F.interpolate(grid.permute(2, 0, 1)[None], (h, w), mode="bilinear", align_corners=True)[0]
        torch.testing.assert_close(canvas[:h, :w], expected.permute(1, 2, 0))
        assert canvas[h:].abs().sum() == 0 and canvas[:, w:].abs().sum() == 0


def test_gradients_of_every_image_reach_the_grid():
    grid = torch.randn(2, 2, 1, requires_grad=True)
    resize_grid_per_sample(grid, torch.tensor([[2, 2], [1, 3]]), 2, 3, resize_bilinear).sum().backward()
    assert grid.grad is not None
    assert grid.grad.sum().item() == pytest.approx(4 + 3)
