from __future__ import annotations

import pytest
import torch

from diptych.data.mixgen import mixed, mixed_in_turn

IMAGES = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
TEXTS = ["a", "b", "c", "d", "e"]


def test_the_first_are_mixed_with_those_behind_them():
    images, texts = mixed(IMAGES, TEXTS, 2, 0.75)
    assert images[:, 0, 0, 0].tolist() == [0.75 * 0 + 0.25 * 2, 0.75 * 1 + 0.25 * 3, 2, 3, 4]
    assert texts == ["a c", "b d", "c", "d", "e"]
    assert TEXTS == ["a", "b", "c", "d", "e"]


def test_nothing_mixed_leaves_the_batch_as_it_is():
    images, texts = mixed(IMAGES, TEXTS, 0)
    assert torch.equal(images, IMAGES) and texts == TEXTS


def test_each_needs_another_of_its_own():
    for number in (3, -1):
        with pytest.raises(ValueError, match=f"{number} of 5 samples"):
            mixed(IMAGES, TEXTS, number)


def test_in_turn_a_partner_may_be_mixed_already():
    images, texts = mixed_in_turn(IMAGES[:3], TEXTS[:3], [1, 0, 2], 0.5)
    assert images[:, 0, 0, 0].tolist() == [0.5, 0.75, 2]
    assert texts == ["a b", "b a b", "c c"]
