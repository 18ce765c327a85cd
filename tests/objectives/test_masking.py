"""Masking of detected regions, and sampling of negative regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.batch import Batch, Regions
from diptych.objectives.masking import RegionMasking
from diptych.objectives.random_choices import KeyedChoices


def regions(b: int = 40, n: int = 12) -> Regions:
    real = torch.arange(n) < (2 + torch.arange(b) % (n - 2))[:, None]
    return Regions(torch.rand(b, n, 4) + 1, torch.rand(b, n, 5), real).with_whole_image()


def draws(b: int = 40) -> KeyedChoices:
    return KeyedChoices(Batch(1, 2, torch.arange(b)))


def test_detected_regions_of_each_image_are_masked_but_never_the_whole_image():
    given = regions()
    found = draws().mask_regions(given, RegionMasking(0.3, 0.25))
    assert found.masked.any(1).all() and not (found.masked & ~given.detected).any()
    assert found.masked.sum() / given.detected.sum() == pytest.approx(0.35, abs=0.1)
    blank = (found.regions.features == 0).all(2) & given.detected
    assert not (blank & ~found.masked).any()
    assert blank.sum() / found.masked.sum() == pytest.approx(0.75, abs=0.12)
    left = given.detected & ~blank
    for row in range(len(given)):
        mean = given.features[row, left[row]].mean(0) if left[row].any() else torch.zeros(4)
        torch.testing.assert_close(found.regions.features[row, 0], mean)


def test_masked_regions_depend_on_the_sample_only():
    given, order = regions(), torch.arange(40).flip(0)
    found = draws().mask_regions(given, RegionMasking())
    turned = KeyedChoices(Batch(1, 2, order)).mask_regions(given[order], RegionMasking())
    assert torch.equal(turned.masked, found.masked[order])


def test_negatives_are_detected_regions_of_this_and_other_images():
    given = regions()
    found = draws().mask_regions(given, RegionMasking())
    places = draws().sample_regions(found, given, torch.arange(len(given)), 0, 10)
    assert places.shape == (int(found.masked.sum()), 10)
    assert given.detected.flatten()[places].all()
    image, region = found.masked.nonzero().unbind(1)
    owner = places // given.mask.shape[1]
    assert (owner[:, :7] != image[:, None]).all() and (owner[:, 7:] == image[:, None]).all()
    assert (places != (image * given.mask.shape[1] + region)[:, None]).all()
    with pytest.raises(ValueError, match="there are none"):
        draws(1).sample_regions(draws(1).mask_regions(given[:1], RegionMasking()), given[:1], torch.arange(1), 0, 10)


def test_an_images_only_region_gets_negatives_from_other_images():
    given = regions()
    single = replace(given, mask=given.mask & (torch.arange(given.mask.shape[1]) < 1 + given.has_whole_image))
    found = draws().mask_regions(single, RegionMasking())
    places = draws().sample_regions(found, single, torch.arange(len(single)), 0, 10)
    image, _ = found.masked.nonzero().unbind(1)
    assert places.shape == (len(single), 10) and (places // given.mask.shape[1] != image[:, None]).all()


def test_regions_of_the_same_image_with_another_caption_are_not_negatives():
    given, whose = regions(), torch.arange(40) % 4
    found = draws().mask_regions(given, RegionMasking())
    places = draws().sample_regions(found, given, whose, 0, 10)
    owner = whose[places // given.mask.shape[1]]
    image = found.masked.nonzero()[:, 0]
    assert (owner[:, :7] != whose[image][:, None]).all()
    assert torch.equal(places[:, 7:], draws().sample_regions(found, given, torch.arange(40), 0, 10)[:, 7:])
    alone = draws().sample_regions(found, given, torch.zeros(40, dtype=torch.long), 0, 10)
    assert (alone // given.mask.shape[1] == image[:, None]).all(), "there is no other image to be told from"
