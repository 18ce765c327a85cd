from __future__ import annotations

from collections import Counter

import pytest

from diptych.data.sources.ablations import CorruptedCaptions
from diptych.data.sources.base import DataError
from tests.data.tiny_data import Colours


def all_captions(source) -> list[str]:
    return [text for i in range(len(source)) for text in source.captions(i)]


@pytest.mark.parametrize("share,num_swapped", [(0.0, 0), (0.3, 12), (0.5, 20), (1.0, 40)])
def test_the_share_of_captions_is_swapped_and_none_is_lost(share, num_swapped):
    plain = Colours(20)
    source = CorruptedCaptions(plain, share, seed=3)
    assert Counter(all_captions(source)) == Counter(all_captions(plain))
    others = 0
    for i in range(20):
        for text, (image, k) in zip(source.captions(i), source.owners(i), strict=True):
            assert plain.captions(image)[k] == text
            others += image != i
    assert others == num_swapped


def test_a_caption_is_never_swapped_to_a_copy_of_its_image():
    """Images 2n and 2n + 1 are copies."""

    class Copies(Colours):
        def pictures(self) -> list[int]:
            return [i // 2 * 2 for i in range(self.n)]

    for seed in range(20):
        source = CorruptedCaptions(Copies(6), 1.0, seed)
        assert all(image // 2 != i // 2 for i in range(6) for image, _ in source.owners(i))


def test_swaps_depend_on_the_seed():
    first, second, other = (all_captions(CorruptedCaptions(Colours(20), 0.5, seed)) for seed in (0, 0, 1))
    assert first == second != other


def test_captions_are_swapped_only_among_the_chosen_images():
    source = CorruptedCaptions(Colours(20), 1.0, images=range(5, 12))
    for i in range(20):
        owners = {image for image, _ in source.owners(i)}
        assert owners == {i} if i not in range(5, 12) else i not in owners and owners <= set(range(5, 12))


def test_two_images_swap_their_captions():
    source = CorruptedCaptions(Colours(2), 1.0)
    assert {source.captions(0), source.captions(1)} <= {("grey 1", "image number 1"), ("image number 1", "grey 1")} | {
        ("grey 0", "image number 0"),
        ("image number 0", "grey 0"),
    }
    assert all(image != i for i in (0, 1) for image, _ in source.owners(i))


def test_impossible_swaps_are_errors():
    with pytest.raises(DataError, match="too few images"):
        CorruptedCaptions(Colours(1), 1.0)
    with pytest.raises(DataError, match=r"must be in .*: got 1\.5"):
        CorruptedCaptions(Colours(4), 1.5)
