from __future__ import annotations

import torch

from diptych.modules.normalization import CENTRED, renormalize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_pixels_come_as_if_they_had_been_normalised_otherwise():
    colours = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        (colours - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for mean, std in (CENTRED, IMAGENET)
    )
    torch.testing.assert_close(renormalize(ours, CENTRED, IMAGENET), theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(renormalize(theirs, IMAGENET, CENTRED), ours, rtol=1e-5, atol=1e-6)
    assert renormalize(ours, CENTRED, CENTRED) is ours
