"""Conversion between pixel normalisations."""

from __future__ import annotations

import torch

from diptych.modules.normalization import CENTRED, renormalize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_renormalized_pixels_equal_pixels_normalised_by_the_target():
    colours = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    centred, imagenet = (
        (colours - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for mean, std in (CENTRED, IMAGENET)
    )
    torch.testing.assert_close(renormalize(centred, CENTRED, IMAGENET), imagenet, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(renormalize(imagenet, IMAGENET, CENTRED), centred, rtol=1e-5, atol=1e-6)
    assert renormalize(centred, CENTRED, CENTRED) is centred
