"""Blindfolds hide what they say, and the control keeps no image with its own words."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.data.blind import GREY, BlindQuestions, DealtCaptions
from diptych.data.scenes import SceneQuestions, Scenes


def test_no_image_keeps_its_captions_and_none_is_lost():
    scenes = Scenes("val", 12)
    dealt = DealtCaptions(scenes, seed=3)
    assert all(dealt.owner[i] != i for i in range(12))
    assert sorted(dealt.captions(i) for i in range(12)) == sorted(scenes.captions(i) for i in range(12))
    assert dealt.image(4).tobytes() == scenes.image(4).tobytes()


def test_the_deal_depends_on_its_seed_alone():
    first, again, other = (DealtCaptions(Scenes("val", 30), seed).owner for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("hidden", ["image", "text"])
def test_a_blindfold_hides_one_side_and_keeps_the_other(hidden: str):
    plain = SceneQuestions(Scenes("val", 3))
    blind = BlindQuestions(plain, hidden)
    assert len(blind) == len(plain)
    grey = bool((np.asarray(blind.image(1)) == GREY).all())
    assert grey == (hidden == "image")
    assert (blind.question(7).text == plain.question(7).text) == (hidden == "image")
    assert blind.question(7).answers == plain.question(7).answers
    assert blind.image(1).size == plain.image(1).size


def test_there_are_two_blindfolds():
    with pytest.raises(ValueError, match="'image' or 'text'"):
        BlindQuestions(SceneQuestions(Scenes("val", 1)), "both")
