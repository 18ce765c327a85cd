from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.data.examples import PairExamples
from diptych.data.images.transforms import ImageSettings
from diptych.data.mixgen import MixedPairs, mixed, mixed_in_turn
from diptych.data.sources.base import BadSample
from diptych.data.tokenizers.tokenizer import Tokenizer
from tests.data.tiny_data import Colours

IMAGES = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
TEXTS = ["a", "b", "c", "d", "e"]


def test_the_first_samples_are_mixed_with_the_next():
    images, texts = mixed(IMAGES, TEXTS, 2, 0.75)
    assert images[:, 0, 0, 0].tolist() == [0.75 * 0 + 0.25 * 2, 0.75 * 1 + 0.25 * 3, 2, 3, 4]
    assert texts == ["a c", "b d", "c", "d", "e"]
    assert TEXTS == ["a", "b", "c", "d", "e"]


def test_mixing_no_samples_leaves_the_batch_unchanged():
    images, texts = mixed(IMAGES, TEXTS, 0)
    assert torch.equal(images, IMAGES) and texts == TEXTS


def test_each_sample_needs_its_own_partner():
    for number in (3, -1):
        with pytest.raises(ValueError, match=f"{number} of 5 samples"):
            mixed(IMAGES, TEXTS, number)


def test_in_turn_a_partner_may_already_be_mixed():
    images, texts = mixed_in_turn(IMAGES[:3], TEXTS[:3], [1, 0, 2], 0.5)
    assert images[:, 0, 0, 0].tolist() == [0.5, 0.75, 2]
    assert texts == ["a b", "b a b", "c c"]


SMALL = ImageSettings(shorter_side=16, patch_size=16, square=True)


def pairs(n: int = 8, matching: float = 0.0, images: ImageSettings = SMALL) -> PairExamples:
    return PairExamples(Colours(n), Tokenizer(16), images, matching)


@pytest.mark.slow
def test_in_training_a_fraction_of_pairs_is_mixed_with_any_other():
    examples, plain = MixedPairs(pairs(), chance=0.25, share=0.75), pairs()
    assert len(examples) == len(plain) == 16 and examples.length(3) == plain.length(3)
    partners = []
    for step in range(60):
        for i in range(16):
            pair, own = examples.load(i, 0, step), plain.load(i, 0, step)
            if pair.caption == own.caption:
                assert (pair.image == own.image).all()
                continue
            assert pair.caption.startswith(f"{own.caption} ")
            other = round((pair.image[0, 0, 0] - 0.75 * own.image[0, 0, 0]) / 0.25)  # each image's grey is its number
            assert pair.caption in (
                f"{own.caption} {plain.caption(2 * other)}",
                f"{own.caption} {plain.caption(2 * other + 1)}",
            )
            partners.append(other)
    assert abs(len(partners) / 960 - 0.25) < 0.04
    assert set(partners) == set(range(8))


def test_a_mixed_pair_does_not_depend_on_the_batch_and_equals_the_functions():
    examples, plain = MixedPairs(pairs(), chance=1.0), pairs()
    first, again = examples.load(5, 3, 4), MixedPairs(pairs(), chance=1.0).load(5, 3, 4)
    assert first.caption == again.caption and (first.image == again.image).all()
    own = plain.load(5, 3, 4)
    other = next(p for p in (plain.load(i, 3, 4) for i in range(16)) if f"{own.caption} {p.caption}" == first.caption)
    both = torch.from_numpy(np.stack([own.image, other.image])).float().permute(0, 3, 1, 2)
    by_function, _ = mixed(both, [own.caption, other.caption], 1)
    assert torch.equal(torch.from_numpy(first.image).permute(2, 0, 1), by_function[0])
    batch = examples.collate([first, own], [5, 6], 3, 4)
    assert batch.image is not None and batch.image.pixels.shape == (2, 3, 16, 16)
    expected = (both / 127.5 - 1).mean(0)
    torch.testing.assert_close(batch.image.pixels[0], expected)


def test_images_of_two_sizes_are_not_mixed():
    class Growing(Colours):
        def image(self, index: int):
            return super().image(index).resize((32, 16 * (1 + index)))

    examples = MixedPairs(
        PairExamples(Growing(4), Tokenizer(16), ImageSettings(shorter_side=48, patch_size=16), 0.0), 1.0
    )
    with pytest.raises(BadSample, match=r"set images.square"):
        for i in range(8):
            examples.load(i, 0, 0)
