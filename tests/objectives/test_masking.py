"""Masking of detected regions, and sampling of negative regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.batch import Batch, Regions
from diptych.config.objectives import RegionMasking
from diptych.objectives.random_choices import KeyedChoices


def regions(b: int = 40, n: int = 12) -> Regions:
    real = torch.arange(n) < (2 + torch.arange(b) % (n - 2))[:, None]
    return Regions(torch.rand(b, n, 4) + 1, torch.rand(b, n, 5), real).with_whole_image()


def draws(b: int = 40) -> KeyedChoices:
    return KeyedChoices(Batch(1, 2, torch.arange(b)))


def test_detected_regions_of_each_image_are_masked_but_never_the_whole_image():
    original = regions()
    masking = draws().mask_regions(original, RegionMasking(0.3, 0.25))
    assert masking.masked.any(1).all() and not (masking.masked & ~original.detected).any()
    assert masking.masked.sum() / original.detected.sum() == pytest.approx(0.35, abs=0.1)
    blank = (masking.regions.features == 0).all(2) & original.detected
    assert not (blank & ~masking.masked).any()
    assert blank.sum() / masking.masked.sum() == pytest.approx(0.75, abs=0.12)
    left = original.detected & ~blank
    for row in range(len(original)):
        mean = original.features[row, left[row]].mean(0) if left[row].any() else torch.zeros(4)
        torch.testing.assert_close(masking.regions.features[row, 0], mean)


def test_masked_regions_depend_on_the_sample_only():
    original, order = regions(), torch.arange(40).flip(0)
    masking = draws().mask_regions(original, RegionMasking())
    turned = KeyedChoices(Batch(1, 2, order)).mask_regions(original[order], RegionMasking())
    assert torch.equal(turned.masked, masking.masked[order])


def test_negatives_are_detected_regions_of_this_and_other_images():
    original = regions()
    masking = draws().mask_regions(original, RegionMasking())
    negatives = draws().sample_regions(masking, original, torch.arange(len(original)), 0, 10)
    assert negatives.shape == (int(masking.masked.sum()), 10)
    assert original.detected.flatten()[negatives].all()
    image, region = masking.masked.nonzero().unbind(1)
    owner = negatives // original.mask.shape[1]
    assert (owner[:, :7] != image[:, None]).all() and (owner[:, 7:] == image[:, None]).all()
    assert (negatives != (image * original.mask.shape[1] + region)[:, None]).all()
    with pytest.raises(ValueError, match="there are none"):
        draws(1).sample_regions(
            draws(1).mask_regions(original[:1], RegionMasking()), original[:1], torch.arange(1), 0, 10
        )


def test_an_images_only_region_gets_negatives_from_other_images():
    original = regions()
    single = replace(
        original, mask=original.mask & (torch.arange(original.mask.shape[1]) < 1 + original.has_whole_image)
    )
    masking = draws().mask_regions(single, RegionMasking())
    negatives = draws().sample_regions(masking, single, torch.arange(len(single)), 0, 10)
    image, _ = masking.masked.nonzero().unbind(1)
    assert negatives.shape == (len(single), 10) and (negatives // original.mask.shape[1] != image[:, None]).all()


def test_regions_of_the_same_image_with_another_caption_are_not_negatives():
    original, whose = regions(), torch.arange(40) % 4
    masking = draws().mask_regions(original, RegionMasking())
    negatives = draws().sample_regions(masking, original, whose, 0, 10)
    owner = whose[negatives // original.mask.shape[1]]
    image = masking.masked.nonzero()[:, 0]
    assert (owner[:, :7] != whose[image][:, None]).all()
    assert torch.equal(negatives[:, 7:], draws().sample_regions(masking, original, torch.arange(40), 0, 10)[:, 7:])
    of_one_image = draws().sample_regions(masking, original, torch.zeros(40, dtype=torch.long), 0, 10)
    assert (of_one_image // original.mask.shape[1] == image[:, None]).all(), "there is no other image for negatives"
