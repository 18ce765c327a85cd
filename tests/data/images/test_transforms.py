from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Channels
from diptych.data.images.transforms import (
    OPERATIONS,
    ImageSettings,
    apply,
    randaugment,
    random_crop_box,
    resized,
    stack,
    transform,
)
from diptych.utils.rng import generator


@pytest.mark.parametrize(
    "size,expected",
    [
        ((480, 640), (384, 512)),  # the most common size of COCO photographs
        ((640, 480), (512, 384)),
        ((384, 384), (384, 384)),
        ((100, 1000), (64, 608)),  # the cap is int(1333/800 * 384) = 639, floored to 608
        ((400, 800), (320, 608)),
        ((500, 833), (384, 608)),
        ((1, 5000), (32, 608)),  # at least one patch
    ],
)
def test_vilts_rule_at_384(size, expected):
    height, width = size
    assert resized(height, width, ImageSettings()) == expected


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([64, 160, 224, 384]), st.sampled_from([16, 32]))
def test_every_size_is_a_multiple_of_the_patch_size_within_the_caps(height, width, shorter, patch):
    sides = resized(height, width, ImageSettings(shorter_side=shorter, patch_size=patch))
    assert all(side % patch == 0 and side >= patch for side in sides)
    assert min(sides) <= shorter and max(sides) <= int(1333 / 800 * shorter)


def test_the_longest_side_at_384_is_608():
    assert max(max(resized(384, w, ImageSettings())) for w in range(384, 4000, 8)) == 608


def test_the_square_of_vit_ignores_aspect():
    assert transform(Pillow.new("RGB", (50, 20)), ImageSettings(shorter_side=48, square=True)).shape == (48, 48, 3)


def test_images_are_normalised_and_zero_padded_at_the_right_and_bottom():
    settings = ImageSettings(shorter_side=32, patch_size=16)
    white = transform(Pillow.new("RGB", (64, 64), "white"), settings)
    black = transform(Pillow.new("RGB", (96, 64), "black"), settings)
    image = stack([white, black], settings)
    assert image.pixels.shape == (2, 3, 32, 48) and image.sizes.tolist() == [[32, 32], [32, 48]]
    torch.testing.assert_close(image.pixels[0, :, :, :32], torch.ones(3, 32, 32))
    torch.testing.assert_close(image.pixels[1], -torch.ones(3, 32, 48))
    assert (image.pixels[0, :, :, 32:] == 0).all()


EVERY = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)


@pytest.mark.parametrize("mean,std", [(CLIP_MEAN, CLIP_STD), (IMAGENET_MEAN, IMAGENET_STD), ((0.1, 0.2, 0.3), HALF)])
def test_normalisation_is_exact_for_every_value_of_each_channel(mean: Channels, std: Channels):
    pixels = stack([EVERY], ImageSettings(shorter_side=16, patch_size=16, mean=mean, std=std)).pixels[0].flatten(1)
    for channel, m, s in zip(pixels, mean, std, strict=True):
        torch.testing.assert_close(channel, (torch.arange(256) / 255 - m) / s, atol=2e-6, rtol=1e-6)


def test_default_normalisation_equals_that_of_older_runs_bit_for_bit():
    older = torch.from_numpy(EVERY).permute(2, 0, 1).float().mul_(1 / 127.5).sub_(1.0)
    assert torch.equal(stack([EVERY], ImageSettings(shorter_side=16)).pixels[0], older)


def photograph() -> Pillow.Image:
    small = np.random.default_rng(5).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Pillow.fromarray(small).resize((64, 48), Pillow.Resampling.BICUBIC)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_keeps_the_size_and_changes_the_image(operation):
    out = apply(photograph(), operation, 0.3)
    assert out.size == (64, 48) and out.mode == "RGB"
    assert np.asarray(out).tolist() != np.asarray(photograph()).tolist()


def row_of(operation: str, strength: float, values: list[int]) -> list[int]:
    """The result of an operation on a grey row of pixels."""
    row = np.array(values, dtype=np.uint8)[None, :, None].repeat(3, 2)
    return np.asarray(apply(Pillow.fromarray(row), operation, strength))[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("operation", "strength", "before", "after"),
    [
        ("solarize", 0.3, [0, 76, 77, 255], [0, 76, 178, 0]),  # the threshold is 76.8
        ("solarize", 0.0, [0, 128, 255], [255, 127, 0]),
        ("solarize_add", 0.3, [0, 94, 95, 200, 250], [33, 127, 127, 22, 0]),  # adds 33, then inverts from 128 on
        ("posterize", 0.3, [0, 127, 128, 255], [0, 0, 128, 128]),  # 1.2 bits are truncated to 1
        ("posterize", 1.0, [0, 15, 16, 255], [0, 0, 16, 240]),
        ("posterize", 0.0, [1, 255], [0, 128]),
        ("brightness", 0.3, [0, 100, 200], [0, 64, 128]),  # 0.1 + 0.3 · 1.8
        ("translate_x", 0.01, [1, 2, 3, 4], [2, 3, 4, 0]),  # a hundredth of 100 pixels
        ("translate_x", -0.02, [1, 2, 3, 4], [0, 0, 1, 2]),
    ],
)
def test_operations_by_hand(operation: str, strength: float, before: list[int], after: list[int]):
    assert row_of(operation, strength, before) == after


def test_shears_rotations_and_shifts_reach_as_far_as_vilts():
    dot = np.zeros((201, 201, 3), dtype=np.uint8)
    dot[98:103, 178:183] = 255  # the 80 rightmost pixels

    def centre(operation: str, strength: float) -> tuple[float, float]:
        out = np.asarray(apply(Pillow.fromarray(dot), operation, strength))[:, :, 0]
        return tuple(float(x.mean()) for x in np.nonzero(out))  # type: ignore[return-value]

    assert centre("translate_x", 0.3) == pytest.approx((100, 150))
    assert centre("translate_y", -0.3) == pytest.approx((130, 180))
    assert centre("shear_x", 1.0) == pytest.approx((100, 150), abs=0.6)  # x' = x − 0.3 y
    assert centre("shear_y", 0.5) == pytest.approx((100 - 0.15 * 180, 180), abs=0.6)
    assert centre("rotate", 1.0) == pytest.approx((100 - 40, 100 + 80 * 3**0.5 / 2), abs=0.6)  # 30 degrees, upwards


def test_images_are_augmented_before_they_are_resized():
    settings = ImageSettings(shorter_side=32, patch_size=16, augment=True)
    image = photograph()
    for sample in range(8):
        by_hand = randaugment(image, generator(1, 0, sample, "augment")).resize((32, 32), Pillow.Resampling.BICUBIC)
        assert np.array_equal(transform(image, settings, generator(1, 0, sample, "augment")), np.asarray(by_hand))


def test_inversion_and_cutout_are_excluded():
    assert not {"invert", "cutout"} & set(OPERATIONS) and len(OPERATIONS) == 14


def test_augmentation_depends_on_its_key_only():
    def drawn(step: int, sample: int) -> bytes:
        return randaugment(photograph(), generator(1, step, sample, "augment")).tobytes()

    assert drawn(3, 4) == drawn(3, 4)
    assert len({drawn(step, sample) for step in range(4) for sample in range(4)}) > 12


def test_augmentation_without_a_generator_raises_an_error():
    with pytest.raises(ValueError, match="generator"):
        transform(photograph(), ImageSettings(shorter_side=32, augment=True))


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 1), st.integers(0, 99))
def test_a_random_crop_lies_in_the_image(height: int, width: int, least: float, seed: int):
    left, top, right, bottom = random_crop_box(height, width, least, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_random_crops_have_the_area_and_the_ratio_of_torchvisions():
    boxes = np.array([random_crop_box(400, 400, 0.08, np.random.default_rng(i)) for i in range(2000)])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = wide * tall / 400**2, np.log(wide / tall)
    assert 0.075 < areas.min() < 0.1 and areas.max() > 0.97 and 0.45 < areas.mean() < 0.51  # large ones fit less often
    assert abs(ratios).max() < np.log(4 / 3) + 0.02 and abs(ratios.mean()) < 0.02
    assert random_crop_box(10, 1000, 1.0, np.random.default_rng(0)) == (493, 0, 506, 10), "the central crop"


def test_a_random_crop_is_drawn_in_training_only_and_by_its_key():
    settings = ImageSettings(shorter_side=32, square=True, random_crop=0.2)
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image = Pillow.fromarray(noise)
    first, again, other = (transform(image, settings, generator(0, step, 5, "augment")) for step in (1, 1, 2))
    assert first.shape == (32, 32, 3) and np.array_equal(first, again) and not np.array_equal(first, other)
    plain = transform(image, settings.without_augmentation())
    assert np.array_equal(plain, transform(image, ImageSettings(shorter_side=32, square=True)))
    with pytest.raises(ValueError, match="no random generator was passed"):
        transform(image, settings)
    with pytest.raises(ValueError, match=r"images\.random_crop needs images of one size"):
        ImageSettings(random_crop=0.5)
